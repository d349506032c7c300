//! Dynamic programming over whole costs.

use super::{BudgetError, Item, Solution, check, totals};

const LIMIT: u64 = 1 << 28;

/// The best selection, where costs are whole numbers and few; items that need others are left out. Costs are rounded up, so
/// that the budget holds.
///
/// # Errors
/// The budget is below the cheapest selection, an item does not fit, or there are too many states.
pub fn exact(classes: &[Vec<Item>], budget: u32) -> Result<Solution, BudgetError> {
    check(classes)?;
    let width = budget as usize + 1;
    let states = classes.iter().map(Vec::len).sum::<usize>() as u64 * width as u64;
    if states > LIMIT {
        return Err(BudgetError::States { states, limit: LIMIT });
    }
    // Least distortion of the classes so far at no more than each cost, and the item that it takes.
    let mut best = vec![0.0_f64; width];
    let mut taken: Vec<Vec<u32>> = Vec::with_capacity(classes.len());
    for items in classes {
        let mut next = vec![f64::INFINITY; width];
        let mut choice = vec![0_u32; width];
        for (index, item) in items.iter().enumerate().filter(|(_, item)| item.needs.is_none()) {
            let cost = item.cost.ceil() as usize;
            for at in cost..width {
                let distortion = best[at - cost] + item.distortion;
                if distortion < next[at] {
                    (next[at], choice[at]) = (distortion, index as u32);
                }
            }
        }
        best = next;
        taken.push(choice);
    }
    if best[width - 1].is_infinite() {
        let cheapest = |items: &Vec<Item>| {
            items.iter().filter(|i| i.needs.is_none()).map(|i| i.cost).fold(f64::INFINITY, f64::min)
        };
        return Err(BudgetError::TooSmall { least: classes.iter().map(cheapest).sum(), budget: budget.into() });
    }
    let mut items = vec![0; classes.len()];
    let mut at = width - 1;
    for (class, choice) in taken.iter().enumerate().rev() {
        items[class] = choice[at] as usize;
        at -= classes[class][items[class]].cost.ceil() as usize;
    }
    let (cost, distortion) = totals(classes, &items);
    Ok(Solution { items, cost, distortion, bound: distortion })
}
