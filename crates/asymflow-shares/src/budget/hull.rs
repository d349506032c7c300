//! Convex hulls and one price.

use super::{BudgetError, Item, Solution, check, totals};
use asymflow_zoo::ops::Choice;

/// A step along a class's hull.
struct Segment {
    class: usize,
    to: usize,
    cost: f64,
    /// Distortion that a unit of cost takes away.
    slope: f64,
}

/// Items of the lower convex hull, cheapest first; `alone` keeps those that need no other class.
fn hull(items: &[Item], alone: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).filter(|&i| !alone || items[i].needs.is_none()).collect();
    order.sort_by(|&a, &b| {
        items[a].cost.total_cmp(&items[b].cost).then(items[a].distortion.total_cmp(&items[b].distortion))
    });
    let mut hull: Vec<usize> = Vec::new();
    for item in order {
        if hull.last().is_some_and(|&last| items[item].distortion >= items[last].distortion) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && slope(&items[before], &items[last]) <= slope(&items[last], &items[item])
        {
            hull.pop();
        }
        hull.push(item);
    }
    hull
}

fn slope(from: &Item, to: &Item) -> f64 {
    (from.distortion - to.distortion) / (to.cost - from.cost)
}

fn segments(classes: &[Vec<Item>], hulls: &[Vec<usize>]) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (class, (items, hull)) in classes.iter().zip(hulls).enumerate() {
        for pair in hull.windows(2) {
            let (from, to) = (&items[pair[0]], &items[pair[1]]);
            segments.push(Segment { class, to: pair[1], cost: to.cost - from.cost, slope: slope(from, to) });
        }
    }
    // Within a class slopes fall strictly, so that a stable sort keeps the order of the hull.
    segments.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    segments
}

/// The least distortion of the relaxation that may take parts of an item, which none within the budget undercuts.
fn relaxed(classes: &[Vec<Item>], budget: f64) -> f64 {
    let hulls: Vec<Vec<usize>> = classes.iter().map(|items| hull(items, false)).collect();
    let cheapest: Vec<usize> = hulls.iter().map(|hull| hull.first().copied().unwrap_or_default()).collect();
    let (cost, mut distortion) = totals(classes, &cheapest);
    let mut left = budget - cost;
    for segment in segments(classes, &hulls) {
        if segment.cost >= left {
            return distortion - left.max(0.0) * segment.slope;
        }
        left -= segment.cost;
        distortion -= segment.cost * segment.slope;
    }
    distortion
}

/// The selection that follows the hulls from the steepest step on, filled up with what still fits. O(n log n) for n items
/// but for the filling, which goes over the items once for each improvement.
///
/// # Errors
/// The budget is below the cheapest selection, or an item does not fit.
pub fn solve(classes: &[Vec<Item>], budget: f64) -> Result<Solution, BudgetError> {
    check(classes)?;
    let hulls: Vec<Vec<usize>> = classes.iter().map(|items| hull(items, true)).collect();
    let mut items: Vec<usize> = hulls.iter().map(|hull| hull.first().copied().unwrap_or_default()).collect();
    let (least, _) = totals(classes, &items);
    if least > budget {
        return Err(BudgetError::TooSmall { least, budget });
    }
    let mut left = budget - least;
    for segment in segments(classes, &hulls) {
        // After the first that does not fit, later steps of other classes may; a class that was passed over stays.
        let reached = hulls[segment.class].iter().position(|&item| item == items[segment.class]);
        let next = reached.and_then(|at| hulls[segment.class].get(at + 1));
        if segment.cost <= left && next == Some(&segment.to) {
            left -= segment.cost;
            items[segment.class] = segment.to;
        }
    }
    follow(classes, &mut items, budget);
    let (cost, distortion) = totals(classes, &items);
    Ok(Solution { items, cost, distortion, bound: relaxed(classes, budget) })
}

/// Takes what still fits and lowers the distortion most, items that need others included where those are blocks, until
/// nothing does. A class that others follow stays a block.
fn follow(classes: &[Vec<Item>], items: &mut [usize], budget: f64) {
    let (mut cost, _) = totals(classes, items);
    let is_block = |items: &[usize], class: usize| matches!(classes[class][items[class]].choice, Choice::Block { .. });
    let mut followers = vec![0_usize; classes.len()];
    let steps: usize = classes.iter().map(Vec::len).sum();
    // Each step lowers the distortion, and there are no more of them than items: a bound for those that lower it little.
    for _ in 0..steps {
        let mut best: Option<(f64, usize, usize)> = None;
        for (class, options) in classes.iter().enumerate() {
            let now = &options[items[class]];
            for (index, item) in options.iter().enumerate() {
                let gain = now.distortion - item.distortion;
                // A cheaper item that distorts no more leaves room.
                let better = gain > 0.0 || (gain >= 0.0 && item.cost < now.cost);
                let allowed = item.needs.is_none_or(|needs| is_block(items, needs));
                let stays = followers[class] == 0 || matches!(item.choice, Choice::Block { .. });
                let fits = cost - now.cost + item.cost <= budget;
                if better && allowed && stays && fits && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, class, index));
                }
            }
        }
        let Some((_, class, index)) = best else { return };
        let (old, new) = (&classes[class][items[class]], &classes[class][index]);
        if let Some(needs) = old.needs {
            followers[needs] -= 1;
        }
        if let Some(needs) = new.needs {
            followers[needs] += 1;
        }
        cost += new.cost - old.cost;
        items[class] = index;
    }
}
