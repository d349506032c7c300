//! Tables of an audit: modes, controls, completions, and all other attacks by mode.

use asymflow_audit::figures::{AttackRow, Control};

use super::{Audited, Found, controls};
use crate::text::markdown;

/// How attacks are called that have a table of their own.
const COMPLETION: &str = "completion of layer ";

/// What is published of an audit.
pub(super) fn of(found: &Found) -> String {
    let mut text = String::from("## Modes\n\n");
    let mut rows = vec![["mode", "network", "accuracy %", "training s", "insecure settings"].map(str::to_owned)];
    rows.extend(found.modes.iter().map(|audited| {
        let training = &audited.report.training;
        [
            audited.mode.clone(),
            audited.network.clone(),
            training.test_accuracy.map_or_else(|| "-".to_owned(), |accuracy| format!("{:.1}", 100.0 * accuracy)),
            format!("{:.1}", training.train_seconds),
            if audited.insecure.is_empty() { "none".to_owned() } else { audited.insecure.join(", ") },
        ]
    }));
    text += &markdown(&rows);
    text += "\n## Controls\n\nAn attack wins where its whole interval is above what is had without it.\n\n";
    let mut rows = vec![["what must be", "so", "of", "not so"].map(str::to_owned)];
    rows.extend(controls(found).into_iter().map(|(what, controls)| {
        let wrong: Vec<&str> = controls.iter().filter(|(_, holds)| !holds).map(|(name, _)| name.as_str()).collect();
        let not_so = if wrong.is_empty() { "none".to_owned() } else { wrong.join("; ") };
        [what.to_owned(), (controls.len() - wrong.len()).to_string(), controls.len().to_string(), not_so]
    }));
    text += &markdown(&rows);
    text += "\n## Completion\n\nOf the split convolution that is recovered best, by zeros of ReLU; the attacker knows the basis' law, the rank and κ. \
             Intervals are of 95 %.\n\n";
    text += &markdown(&completions(&found.attacks));
    text += "\n## Other attacks\n\n";
    text += &markdown(&by_mode(found));
    let skipped: Vec<&String> = found.modes.iter().flat_map(|audited| &audited.report.skipped).collect();
    if !skipped.is_empty() {
        text += "\nLeft out, because they do not apply:\n\n";
        skipped.iter().for_each(|line| text += &format!("* {line}\n"));
    }
    if !found.epsilon.is_empty() {
        text += "\n## ε from below\n\n";
        let mut rows = vec![["mechanism", "planted fault", "claimed", "at least", "releases"].map(str::to_owned)];
        rows.extend(found.epsilon.iter().map(|row| {
            let fault = row.fault.map_or_else(|| "none".to_owned(), |fault| format!("{fault:?}"));
            let claimed = row.claimed.map_or_else(|| "∞".to_owned(), |claimed| format!("{claimed:.3}"));
            [row.mechanism.clone(), fault, claimed, format!("{:.3}", row.measured_low), row.trials.to_string()]
        }));
        text += &markdown(&rows);
    }
    text + "\n"
}

fn with_interval(row: &AttackRow) -> String {
    let AttackRow { value, low, high, .. } = row;
    if low == high { format!("{value:.3}") } else { format!("{value:.3} ({low:.3} to {high:.3})") }
}

/// For every mode, rank and number of repeats the layer of which most is recovered.
fn completions(rows: &[AttackRow]) -> Vec<Vec<String>> {
    let mut best: Vec<(&str, &AttackRow)> = Vec::new();
    for row in rows.iter().filter(|row| row.control == Control::Attack && row.figure == "pixels recovered") {
        let Some((_, setting)) = row.attack.strip_prefix(COMPLETION).and_then(|rest| rest.split_once(" at ")) else {
            continue;
        };
        match best.iter_mut().find(|(other, best)| *other == setting && best.mode == row.mode) {
            Some((_, best)) if best.value >= row.value => {}
            Some((_, best)) => *best = row,
            None => best.push((setting, row)),
        }
    }
    let error = |mode: &str, attack: &str| {
        let row = rows.iter().find(|row| row.mode == mode && row.attack == attack && row.figure == "relative error");
        row.map_or_else(|| "-".to_owned(), |row| format!("{:.3}", row.value))
    };
    let head = ["mode", "setting", "layer", "pixels recovered", "relative error", "of the residual alone"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(best.into_iter().map(|(setting, row)| {
        let layer =
            row.attack.strip_prefix(COMPLETION).and_then(|rest| rest.split_once(' ')).map_or("", |(layer, _)| layer);
        let errors = [error(&row.mode, &row.attack), error(&row.mode, &format!("{}: the residual alone", row.attack))];
        let [completed, alone] = errors;
        vec![row.mode.clone(), setting.to_owned(), layer.to_owned(), with_interval(row), completed, alone]
    }));
    lines
}

/// Figures of all other attacks, one column a mode.
fn by_mode(found: &Found) -> Vec<Vec<String>> {
    let mut kinds: Vec<(&str, &str, Control)> = Vec::new();
    for row in found.attacks.iter().filter(|row| !row.attack.starts_with(COMPLETION)) {
        let control = if row.control == Control::MustWin { Control::Attack } else { row.control };
        if !kinds.contains(&(&row.attack, &row.figure, control)) {
            kinds.push((&row.attack, &row.figure, control));
        }
    }
    let mut lines = vec![["attack", "figure", "control"].map(str::to_owned).to_vec()];
    lines[0].extend(found.modes.iter().map(|audited| audited.mode.clone()));
    lines.extend(kinds.into_iter().map(|(attack, figure, control)| {
        let of = |audited: &Audited| {
            let is_it = |row: &&AttackRow| (&*row.mode, &*row.attack, &*row.figure) == (&*audited.mode, attack, figure);
            found.attacks.iter().find(is_it).map_or_else(|| "-".to_owned(), with_interval)
        };
        let control = match control {
            Control::Attack | Control::MustWin => "",
            Control::Baseline => "baseline",
            Control::MustNot => "must not",
            Control::Planted => "planted",
        };
        let mut line = [attack, figure, control].map(str::to_owned).to_vec();
        line.extend(found.modes.iter().map(of));
        line
    }));
    lines
}
