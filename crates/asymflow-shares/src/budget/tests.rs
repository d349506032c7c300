use proptest::prelude::*;

use super::*;
use crate::compile::{Options, Selection, compile};
use crate::program::{Method, Op, Step, WeightPolicy};
use crate::ring::{Ring, Z48};
use asymflow_zoo::{
    Network, Weights,
    network::Layer,
    ops::{Decision, Grouping, Linear, SharedRelu},
};

fn item(cost: u32, distortion: u32) -> Item {
    let choice = Choice::Block { rows: 1, columns: 1 };
    Item { choice, cost: cost.into(), distortion: distortion.into(), needs: None }
}

fn classes() -> impl Strategy<Value = Vec<Vec<Item>>> {
    let class =
        prop::collection::vec((0_u32..12, 0_u32..40).prop_map(|(cost, distortion)| item(cost, distortion)), 1..5);
    prop::collection::vec(class, 1..6)
}

/// Class, choice of a copy: some items of a class follow another class.
fn with_copies() -> impl Strategy<Value = Vec<Vec<Item>>> {
    (classes(), prop::collection::vec((0_usize..6, 0_usize..6, 0_u32..12, 0_u32..40), 0..6)).prop_map(
        |(mut classes, copies)| {
            for class in &mut classes {
                // One choice that is no block, so that prototypes may be lost.
                class.push(Item { choice: Choice::Identity, ..item(0, 45) });
            }
            for (class, of, cost, distortion) in copies {
                if class < classes.len() && of < classes.len() && class != of {
                    classes[class].push(Item {
                        choice: Choice::Copy { of },
                        needs: Some(of),
                        ..item(cost, distortion)
                    });
                }
            }
            classes
        },
    )
}

/// The best of all selections, copies only of blocks.
fn brute_force(classes: &[Vec<Item>], budget: f64) -> Option<f64> {
    let mut items = vec![0; classes.len()];
    let mut best: Option<f64> = None;
    loop {
        if valid(classes, &items) {
            let (cost, distortion) = totals(classes, &items);
            if cost <= budget && best.is_none_or(|least| distortion < least) {
                best = Some(distortion);
            }
        }
        let Some(class) = (0..classes.len()).find(|&class| items[class] + 1 < classes[class].len()) else {
            return best;
        };
        items[class] += 1;
        items[..class].fill(0);
    }
}

fn valid(classes: &[Vec<Item>], items: &[usize]) -> bool {
    let block = |class: usize| matches!(classes[class][items[class]].choice, Choice::Block { .. });
    classes.iter().zip(items).all(|(class, &item)| class[item].needs.is_none_or(block))
}

proptest! {
    #[test]
    fn dynamic_programming_finds_the_best(classes in classes(), budget in 0_u32..40) {
        let best = brute_force(&classes, budget.into());
        match exact(&classes, budget) {
            Ok(found) => {
                prop_assert_eq!(Some(found.distortion), best);
                prop_assert!(found.cost <= budget.into());
            }
            Err(error) => {
                let too_small = matches!(error, BudgetError::TooSmall { .. });
                prop_assert!(too_small && best.is_none(), "{}", error);
            }
        }
    }

    #[test]
    fn selections_keep_budget_and_bound(classes in with_copies(), budget in 0_u32..40) {
        let best = brute_force(&classes, budget.into());
        match solve(&classes, budget.into()) {
            Ok(found) => {
                let best = best.unwrap();
                prop_assert!(valid(&classes, &found.items));
                prop_assert!(found.cost <= budget.into());
                prop_assert_eq!((found.cost, found.distortion), totals(&classes, &found.items));
                prop_assert!(found.bound <= best + 1e-9, "{} {best}", found.bound);
                prop_assert!(found.distortion >= best);
                // No farther from the best than it says.
                prop_assert!(found.distortion - best <= found.gap() + 1e-9);
            }
            Err(error) => {
                // Copies can be cheaper than anything that stands by itself, but an identity here costs nothing.
                let too_small = matches!(error, BudgetError::TooSmall { .. });
                prop_assert!(too_small && best.is_none(), "{}", error);
            }
        }
    }

    /// What misses the bound is less than one step along a hull.
    #[test]
    fn the_gap_is_one_step_at_most(classes in classes(), budget in 0_u32..40) {
        if let Ok(found) = solve(&classes, budget.into()) {
            let spread = |items: &Vec<Item>| {
                let distortions = items.iter().map(|item| item.distortion);
                distortions.clone().fold(0.0, f64::max) - distortions.fold(f64::INFINITY, f64::min)
            };
            let most = classes.iter().map(spread).fold(0.0, f64::max);
            prop_assert!(found.gap() <= most + 1e-9, "{} {most}", found.gap());
        }
    }

    #[test]
    fn the_bound_falls_as_the_budget_grows(classes in classes(), budget in 0_u32..40, more in 0_u32..20) {
        if let Ok(found) = solve(&classes, budget.into()) {
            let richer = solve(&classes, (budget + more).into()).unwrap();
            prop_assert!(richer.bound <= found.bound + 1e-9);
            prop_assert!(exact(&classes, budget + more).unwrap().distortion <= exact(&classes, budget).unwrap().distortion);
        }
    }
}

#[test]
fn items_out_of_range_are_named() {
    let class = vec![item(1, 1)];
    let nan = vec![Item { distortion: f64::NAN, ..item(1, 1) }];
    assert!(
        solve(&[class.clone(), nan], 9.0).unwrap_err().to_string().starts_with("class 1, item 0: distortion of NaN")
    );
    let own = vec![item(1, 1), Item { needs: Some(0), ..item(1, 0) }];
    assert!(matches!(solve(&[own], 9.0), Err(BudgetError::Needs { class: 0, item: 1, needs: 0 })));
    assert!(matches!(solve(&[Vec::new()], 9.0), Err(BudgetError::Empty { class: 0 })));
    assert_eq!(solve(std::slice::from_ref(&class), 0.5), Err(BudgetError::TooSmall { least: 1.0, budget: 0.5 }));
    assert!(matches!(exact(&[class], u32::MAX), Err(BudgetError::States { .. })));
}

/// Prices are those of a program with the choice in every channel.
fn priced<R: Ring>(choices: Vec<Choice>, method: Method) {
    // Eight decisions of each kind fill bytes.
    let choices = choices.repeat(8);
    let shape = Shape::new(choices.len(), 6, 8);
    let layers = vec![
        Layer::SharedRelu(SharedRelu {
            name: "act".to_owned(),
            channels: choices.len(),
            grouping: Grouping::Choices(choices.clone()),
            decision: Decision::Mean,
        }),
        Layer::Flatten,
        Layer::Linear(Linear { name: "fc".to_owned(), in_features: shape.len(), out_features: 2 }),
    ];
    let network = Network { name: "priced".to_owned(), input: shape, classes: 2, layers };
    let mut options = Options::new::<R>(WeightPolicy::Public);
    // Nothing is dropped from the window, and no ring is so small that the layer after truncates squares.
    (options.fixed.activation_bits, options.fixed.square_bits) = (9, 9);
    options.integer_bits = 3;
    options.method = Selection::Always(method);
    let model = compile::<R>(&network, &Weights::init(&network, 1), &options).unwrap();
    let squared = |step: &Step| if let Op::Square { shift, .. } = step.op { Some(shift) } else { None };
    let squared = model.program().steps.iter().find_map(squared).unwrap_or(0);
    let cost = model.program().cost();
    let backend = Backend { ring_bits: R::BITS, window_bits: R::BITS, truncated_bits: 0, method };
    let mut expected = ChoiceCost::default();
    let mut kinds = [0; 2];
    for choice in &choices {
        let truncated_bits = if *choice == Choice::Quadratic { squared } else { 0 };
        let priced = price(*choice, shape, Backend { truncated_bits, ..backend });
        expected.online_bytes += priced.online_bytes;
        expected.dealer_bytes += priced.dealer_bytes;
        kinds[usize::from(priced.rounds == 1)] = priced.rounds;
    }
    let online = 2.0 * cost.online_bytes_per_server as f64;
    let dealt = (cost.dealer_bytes_first + cost.dealer_bytes_second) as f64;
    assert_eq!((online, dealt), (expected.online_bytes, expected.dealer_bytes));
    assert_eq!(cost.rounds, kinds.iter().map(|rounds| u64::from(*rounds)).sum::<u64>());
}

#[test]
fn prices_are_what_programs_cost() {
    let block = |rows, columns| Choice::Block { rows, columns };
    for choices in [
        vec![block(1, 1), block(2, 3), block(4, 4), Choice::Copy { of: 1 }],
        vec![Choice::Quadratic, Choice::Identity, Choice::Zero],
        vec![block(6, 8), Choice::Quadratic, Choice::Identity, Choice::Copy { of: 0 }],
        vec![Choice::Zero],
    ] {
        for method in [Method::Keys, Method::Tables] {
            priced::<u64>(choices.clone(), method);
            priced::<Z48>(choices.clone(), method);
            priced::<u32>(choices.clone(), method);
        }
    }
}

#[test]
fn block_sizes_fit_their_map() {
    let sizes = block_sizes(32, 32);
    assert!(
        sizes.contains(&(1, 1)) && sizes.contains(&(32, 32)) && sizes.contains(&(3, 12)) && !sizes.contains(&(1, 32))
    );
    assert_eq!(block_sizes(1, 1), [(1, 1)]);
    assert!(block_sizes(5, 7).iter().all(|&(rows, columns)| rows <= 5 && columns <= 7));
}
