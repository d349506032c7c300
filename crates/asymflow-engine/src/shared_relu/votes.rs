//! What groups vote, and the gradients of votes.

use asymflow_zoo::ops::Decision;
use rayon::prelude::*;

use super::plan::{Blocks, GroupPlan, Plane};

impl GroupPlan {
    /// The weights of a learned decision repeated over a row: places × rows of a block × columns of the map.
    pub(super) fn widen(&self, vote: &[f32]) -> Vec<f32> {
        let Some(blocks) = self.learned().filter(|_| !vote.is_empty()) else { return Vec::new() };
        let Blocks { rows, columns, depth, .. } = blocks;
        let (band, width) = (blocks.band_rows(), blocks.map.1);
        let mut wide = Vec::with_capacity(depth * band * width);
        for place in 0..depth {
            for row in 0..band {
                let weights = &vote[(place * rows + row) * columns..][..columns];
                wide.extend(weights.iter().cycle().take(width));
            }
        }
        wide
    }

    /// The first blocks, which have all places that there are.
    fn learned(&self) -> Option<Blocks> {
        let Some(Plane::Blocks(blocks)) = self.planes.first() else { return None };
        (self.decision == Decision::Learned).then_some(*blocks)
    }

    /// Calls `visit` with the group and the index into the sample of every activation that decides for its group alone.
    fn each_representative(&self, mut visit: impl FnMut(usize, usize)) {
        let pixels = self.shape.pixels();
        let is_centre = self.decision == Decision::Centre;
        for (channel, plane) in self.planes.iter().enumerate() {
            let Plane::Blocks(blocks @ Blocks { place: Some(0), columns, map: (_, width), .. }) = *plane else {
                continue;
            };
            for (first, band) in blocks.bands() {
                let y = if is_centre { band.start + band.len() / 2 } else { band.start };
                for (at, left) in (0..width).step_by(columns).enumerate() {
                    let x = if is_centre { left + columns.min(width - left) / 2 } else { left };
                    visit(first + at, channel * pixels + y * width + x);
                }
            }
        }
    }

    /// Divides what belongs to each group by the number of its voters.
    fn divide_by_size(&self, groups: &mut [f32]) {
        for plane in &self.planes {
            let Plane::Blocks(blocks @ Blocks { place: Some(0), columns, depth, map: (_, width), .. }) = *plane else {
                continue;
            };
            for (first, band) in blocks.bands() {
                let rows = depth * band.len();
                // The last block may be narrower.
                let (whole, rest) = groups[first..first + blocks.across()].split_at_mut(width / columns);
                let share = 1.0 / (rows * columns) as f32;
                whole.iter_mut().for_each(|group| *group *= share);
                rest.iter_mut().for_each(|group| *group /= (rows * (width % columns)) as f32);
            }
        }
    }

    /// The votes of one sample.
    pub(super) fn vote(&self, x: &[f32], weights: &[f32], votes: &mut [f32], row: &mut [f32]) {
        votes.fill(0.0);
        if matches!(self.decision, Decision::Corner | Decision::Centre) {
            return self.each_representative(|group, index| votes[group] = x[index]);
        }
        let larger = |a: f32, b: f32| if b.abs() > a.abs() { b } else { a };
        for (blocks, x) in self.blocks(x) {
            let Some(place) = blocks.place else { continue };
            let of = |y: usize| blocks.row(x, y);
            let sum = |a: f32, b: f32| a + b;
            match self.decision {
                Decision::Largest => {
                    let add = |row: &mut [f32], y: usize| {
                        row.iter_mut().zip(of(y)).for_each(|(most, &x)| *most = larger(*most, x));
                    };
                    blocks.fold(row, votes, add, larger);
                }
                Decision::Learned => {
                    let add = |row: &mut [f32], y: usize| {
                        let weights = blocks.wide_row(weights, place, y);
                        row.iter_mut().zip(of(y)).zip(weights).for_each(|((sum, &x), &w)| *sum += w * x);
                    };
                    blocks.fold(row, votes, add, sum);
                }
                // Representatives have voted above.
                Decision::Mean | Decision::Corner | Decision::Centre => {
                    let add = |row: &mut [f32], y: usize| row.iter_mut().zip(of(y)).for_each(|(sum, &x)| *sum += x);
                    blocks.fold(row, votes, add, sum);
                }
            }
        }
        if self.decision == Decision::Mean {
            self.divide_by_size(votes);
        }
    }

    /// The gradients of the votes of one sample as if each decision were clamp(vote/2 + 1/2, 0, 1).
    pub(super) fn vote_gradients(
        &self,
        x: &[f32],
        dy: &[f32],
        votes: &[f32],
        sharing: f32,
        d_votes: &mut [f32],
        row: &mut [f32],
    ) {
        d_votes.fill(0.0);
        for ((blocks, x), (_, dy)) in self.blocks(x).zip(self.blocks(dy)) {
            let add = |row: &mut [f32], y: usize| {
                let pairs = blocks.row(x, y).iter().zip(blocks.row(dy, y));
                row.iter_mut().zip(pairs).for_each(|(sum, (x, dy))| *sum += x * dy);
            };
            blocks.fold(row, d_votes, add, |a, b| a + b);
        }
        for (gradient, vote) in d_votes.iter_mut().zip(votes) {
            *gradient = if vote.abs() <= 1.0 { 0.5 * sharing * *gradient } else { 0.0 };
        }
    }

    /// Adds to `dx` what the gradients of the votes of one sample pass to their voters.
    pub(super) fn to_voters(
        &self,
        x: &[f32],
        weights: &[f32],
        votes: &[f32],
        d_votes: &mut [f32],
        dx: &mut [f32],
        row: &mut [f32],
    ) {
        match self.decision {
            Decision::Corner | Decision::Centre => {
                return self.each_representative(|group, index| dx[index] += d_votes[group]);
            }
            Decision::Largest => return self.to_largest(x, votes, d_votes, dx),
            Decision::Mean => self.divide_by_size(d_votes),
            Decision::Learned => {}
        }
        let pixels = self.shape.pixels();
        for (plane, dx) in self.planes.iter().zip(dx.chunks_exact_mut(pixels)) {
            let Plane::Blocks(blocks @ Blocks { place: Some(place), .. }) = *plane else { continue };
            for (first, band) in blocks.bands() {
                blocks.spread(&d_votes[first..], row, |gradient| gradient);
                for y in band {
                    let dx = dx[y * blocks.map.1..][..blocks.map.1].iter_mut().zip(&*row);
                    if self.decision == Decision::Learned {
                        let weights = blocks.wide_row(weights, place, y);
                        dx.zip(weights).for_each(|((dx, gradient), w)| *dx += gradient * w);
                    } else {
                        dx.for_each(|(dx, gradient)| *dx += gradient);
                    }
                }
            }
        }
    }

    /// Each gradient goes to the first activation that is the vote.
    fn to_largest(&self, x: &[f32], votes: &[f32], d_votes: &mut [f32], dx: &mut [f32]) {
        let pixels = self.shape.pixels();
        for (channel, plane) in self.planes.iter().enumerate() {
            let Plane::Blocks(blocks @ Blocks { place: Some(_), columns, map: (_, width), .. }) = *plane else {
                continue;
            };
            for (first, band) in blocks.bands() {
                for (y, column) in band.flat_map(|y| (0..width).map(move |column| (y, column))) {
                    let (index, group) = (channel * pixels + y * width + column, first + column / columns);
                    if x[index] == votes[group] {
                        dx[index] += std::mem::take(&mut d_votes[group]);
                    }
                }
            }
        }
    }

    /// The gradient of the weights of a learned decision: for each place, the sum over its voters of x times the gradient of
    /// the vote. `d_votes` are those of all samples.
    pub(super) fn learned_gradient(&self, x: &[f32], d_votes: &[f32], places: usize) -> Vec<f32> {
        let mut gradient = vec![0.0; places];
        let Some(Blocks { rows, columns, map: (_, width), .. }) = self.learned() else { return gradient };
        gradient.par_chunks_exact_mut(columns).enumerate().for_each(|(at, gradient)| {
            let (mine, within) = (at / rows, at % rows);
            let (mut spread, mut sums) = (vec![0.0; width], vec![0.0; width]);
            for (x, d_votes) in x.chunks_exact(self.shape.len()).zip(d_votes.chunks_exact(self.votes())) {
                for (blocks, x) in self.blocks(x).filter(|(blocks, _)| blocks.place == Some(mine)) {
                    for (first, band) in blocks.bands().filter(|(_, band)| within < band.len()) {
                        blocks.spread(&d_votes[first..], &mut spread, |gradient| gradient);
                        let x = blocks.row(x, band.start + within);
                        sums.iter_mut().zip(x).zip(&spread).for_each(|((sum, x), gradient)| *sum += x * gradient);
                    }
                }
            }
            gradient.iter_mut().enumerate().for_each(|(column, gradient)| {
                *gradient = sums.iter().skip(column).step_by(columns).sum();
            });
        });
        gradient
    }
}
