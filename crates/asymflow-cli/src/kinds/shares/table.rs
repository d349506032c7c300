//! What two servers cost, as Markdown.

use asymflow_shares::program::{Cost, WeightPolicy, Z48};
use asymflow_zoo::{Network, Weights};

use super::found::SharesRun;
use super::measure::compiled;
use crate::error::CliError;
use crate::experiment::Experiment;
use crate::kind::Verdict;
use crate::shares_section::{ActivationName, ComparisonName, Elsewhere, LinkName, RingName, Setting};
use crate::text::{markdown, median};

fn megabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 * 1e-6)
}

fn both([first, second]: [u64; 2]) -> String {
    format!("{} + {}", megabytes(first), megabytes(second))
}

/// Median, and smallest to largest, in milliseconds.
fn milliseconds(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.0} ({:.0}–{:.0})", 1e3 * median(values), 1e3 * least, 1e3 * most)
}

const HEAD: [&str; 19] = [
    "weights",
    "ring",
    "activation",
    "link",
    "comparison",
    "decisions",
    "rounds",
    "MB online",
    "MB by each server",
    "MB dealt to each server",
    "MB in all",
    "MB setup, once a model",
    "deal ms",
    "prepare ms",
    "online ms",
    "n",
    "load",
    "largest error of a logit",
    "classes changed",
];

fn row(run: &SharesRun) -> [String; 19] {
    let Setting { ring, activation, link, comparison, checked_ranges, .. } = run.setting;
    [
        run.setting.policy_name().to_owned(),
        ring.to_string(),
        activation.to_string(),
        link.to_string(),
        format!("{comparison}{}", if checked_ranges { ", checked ranges" } else { "" }),
        run.decisions.to_string(),
        run.rounds.to_string(),
        megabytes(run.online_bytes.iter().sum()),
        both(run.online_bytes),
        both(run.dealt_bytes),
        format!("{:.2}", run.total_megabytes),
        megabytes(run.setup_bytes.iter().sum()),
        milliseconds(&run.deal_seconds),
        milliseconds(&run.prepare_seconds),
        milliseconds(&run.online_seconds),
        run.online_seconds.len().to_string(),
        run.load_average.map_or_else(|| "-".to_owned(), |load| format!("{load:.1}")),
        format!("{:.4} of {:.3}", run.largest_error, run.largest_logit),
        format!("{} of {}", run.changed, run.images),
    ]
}

pub fn render(experiment: &Experiment, runs: &[SharesRun]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(runs.iter().map(row));
    let weights = if experiment.model.weights.is_some() {
        "weights from a file"
    } else {
        "weights by seed, so that costs mean something and accuracies nothing"
    };
    let threads = runs.first().map_or(0, |run| run.threads);
    let mut text = format!(
        "Network {}, one image a query, {weights}. Dealer, client and both servers are threads of one process on one machine; \
         the servers talk over TCP on loopback, with {threads} thread(s) of computation each, without TLS save where the link is *tls*: a session each \
         way as `asymflow-server` has it, set up before the query. *lan* is 10 Gbit/s and 0.2 ms there \
         and back, *wan* 100 Mbit/s and 40 ms, emulated on top of it. Bytes online are what each server writes, frames and \
         headers included, TLS records (0.1 % more) not; *MB in all* are these and what is dealt for the query; MB are 10⁶ bytes. Milliseconds are medians of n queries (smallest–largest): *deal* is the dealer's work, which \
         uses all cores, *prepare* what the servers do before the input is known, *online* from shares of the image to shares of the logits. \
         *load* is the machine's load average over the minute before, this program's own 1 to 2 included: where it is above the number \
         of cores, others computed beside it, and times are too long. Errors are distances from the same network in double precision, beside its largest logit.\n\n{}",
        experiment.model.names.join(", "),
        markdown(&rows)
    );
    if experiment.model.weights.is_some() {
        text += "\n";
        for run in runs {
            let share = |correct: usize| 100.0 * correct as f64 / run.images.max(1) as f64;
            text += &format!(
                "{}: {:.2} % of {} test images are classified correctly on shares, {:.2} % in double precision.\n",
                run.setting,
                share(run.correct[0]),
                run.images,
                share(run.correct[1])
            );
        }
    }
    if let Some(verdict) = verdict(experiment, runs) {
        text += &format!("\n{}\n", verdict.text);
    }
    if !experiment.shares.elsewhere.is_empty() {
        text += &elsewhere(&experiment.shares.elsewhere);
    }
    text
}

fn elsewhere(figures: &[Elsewhere]) -> String {
    let mut rows = vec![["system", "MB, all parties", "seconds", "machine", "source"].map(str::to_owned)];
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for figure in figures {
        rows.push([
            figure.system.clone(),
            number(figure.megabytes),
            number(figure.seconds),
            figure.machine.clone(),
            figure.source.clone(),
        ]);
    }
    format!(
        "\n## Not from this run\n\nOther systems, as published or as measured another day, each on the machine named and under its own \
         trust model. Seconds of different machines do not compare. Where these systems make their randomness within the query, *MB in all* above is \
         what compares; the setup, once a model, has a column of its own.\n\n{}",
        markdown(&rows)
    )
}

/// Whether full ReLU with shared weights over loopback stays below the experiment's limits, in words; `None` without limits or
/// such a run.
pub fn verdict(experiment: &Experiment, runs: &[SharesRun]) -> Option<Verdict> {
    let limits = &experiment.report;
    let (most_megabytes, most_seconds) = (limits.max_online_megabytes, limits.max_online_seconds);
    let totals = [limits.max_total_megabytes, limits.max_checked_megabytes];
    if [most_megabytes, most_seconds].into_iter().chain(totals).all(|limit| limit.is_none()) {
        return None;
    }
    let claimed = |run: &&SharesRun| {
        let Setting { policy, activation, link, comparison, .. } = run.setting;
        (policy, activation, link) == (WeightPolicy::Shared, ActivationName::Relu, LinkName::Loopback)
            && comparison != ComparisonName::Keys
    };
    let mut holds = true;
    let mut found = Vec::new();
    for run in runs.iter().filter(claimed) {
        let megabytes = run.online_bytes.iter().sum::<u64>() as f64 * 1e-6;
        let (total, seconds) = (run.total_megabytes, median(&run.online_seconds));
        let most_total = totals[usize::from(run.setting.checked_ranges)];
        let keeps = |limit: Option<f64>, value: f64| limit.is_none_or(|most| value <= most);
        holds &= keeps(most_megabytes, megabytes) && keeps(most_total, total) && keeps(most_seconds, seconds);
        let ranges = if run.setting.checked_ranges { ", checked ranges:" } else { "" };
        let ring = run.setting.ring;
        found.push(format!("{ring}{ranges} {megabytes:.2} MB online, {total:.2} MB with the deal and {seconds:.3} s"));
    }
    let limit = [
        most_megabytes.map(|most| format!("{most} MB online")),
        totals[0].map(|most| format!("{most} MB in all")),
        totals[1].map(|most| format!("{most} MB with checked ranges")),
        most_seconds.map(|most| format!("{most} s")),
    ];
    let limit = limit.into_iter().flatten().collect::<Vec<_>>().join(" and ");
    let verdict = if holds { "holds" } else { "does not hold" };
    let text =
        format!("Claim {verdict}: full ReLU, shared weights, loopback: {}; allowed are {limit}.", found.join(", "));
    (!found.is_empty()).then_some(Verdict { holds, text })
}

/// What queries would cost by the structure of their programs.
pub fn costs(experiment: &Experiment, network: &Network) -> Result<String, CliError> {
    let weights = Weights::init(network, 1);
    let head = ["setting", "decisions", "rounds", "MB online", "MB dealt to each server"];
    let mut rows = vec![head.map(str::to_owned)];
    for setting in experiment.shares.settings() {
        let cost: Cost = match setting.ring {
            RingName::U64 => compiled::<u64>(network, &weights, setting)?.program().cost(),
            RingName::Z48 => compiled::<Z48>(network, &weights, setting)?.program().cost(),
            RingName::U32 => compiled::<u32>(network, &weights, setting)?.program().cost(),
        };
        rows.push([
            setting.to_string(),
            cost.decisions.to_string(),
            cost.rounds.to_string(),
            megabytes(2 * cost.online_bytes_per_server),
            both([cost.dealer_bytes_first, cost.dealer_bytes_second]),
        ]);
    }
    Ok(markdown(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(limits: &str) -> Experiment {
        let text = format!(
            "schema = 1\ntitle = \"t\"\nclaim = \"c\"\nkind = \"shares\"\n[model]\nnames = [\"resnet8-cifar\"]\n[report]\n{limits}\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn run(policy: WeightPolicy, megabytes: u64, online_seconds: &[f64]) -> SharesRun {
        SharesRun {
            setting: Setting {
                policy,
                ring: RingName::U64,
                activation: ActivationName::Relu,
                link: LinkName::Loopback,
                comparison: ComparisonName::Tables,
                checked_ranges: false,
            },
            comparison: ComparisonName::Tables,
            measured_link: None,
            dealt_megabytes: 1.0,
            total_megabytes: megabytes as f64 + 1.0,
            decisions: 0,
            rounds: 0,
            threads: 1,
            load_average: None,
            online_bytes: [megabytes * 500_000; 2],
            dealt_bytes: [0; 2],
            setup_bytes: [0; 2],
            setup_seconds: 0.0,
            deal_seconds: Vec::new(),
            prepare_seconds: Vec::new(),
            online_seconds: online_seconds.to_vec(),
            images: 1,
            largest_error: 0.0,
            largest_logit: 0.0,
            changed: 0,
            correct: [0; 2],
        }
    }

    #[test]
    fn the_claim_is_of_shared_weights() {
        let limits = "max_online_megabytes = 41.0\nmax_online_seconds = 0.5";
        let shared = |megabytes, seconds: &[f64]| run(WeightPolicy::Shared, megabytes, seconds);
        let holds = |runs: &[SharesRun]| verdict(&experiment(limits), runs).map(|verdict| verdict.holds);
        assert_eq!(holds(&[shared(41, &[0.4, 0.5, 9.0]), run(WeightPolicy::Public, 99, &[9.0])]), Some(true));
        assert_eq!(holds(&[shared(42, &[0.4])]), Some(false));
        let in_all = |most: &str| {
            let limits = format!("max_total_megabytes = {most}");
            verdict(&experiment(&limits), &[shared(41, &[9.0])]).map(|verdict| verdict.holds)
        };
        assert_eq!((in_all("42.0"), in_all("41.9")), (Some(true), Some(false)));
        assert_eq!(holds(&[shared(41, &[0.4, 0.6, 0.7])]), Some(false));
        assert_eq!(holds(&[run(WeightPolicy::Public, 1, &[0.1])]), None);
        assert_eq!(verdict(&experiment(""), &[shared(1, &[0.1])]), None);
    }
}
