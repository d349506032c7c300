//! Where a result was measured: machine, command, commit.

use serde::{Deserialize, Serialize};

/// Environment of programs whose large activations are freed and taken again at every layer: their pages stay. Of glibc; others ignore it.
/// A thread's own arena could not hold what is longer than 64 MiB.
pub const KEPT_PAGES: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "17179869184")];

/// The machine of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    pub cores: usize,
    /// The accelerator in words; null without one.
    pub gpu: Option<String>,
}

pub fn machine(worker_device: Option<&str>) -> Machine {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
    let gpu = worker_device.filter(|d| !d.contains("(CPU)") && !d.contains("answers zeros")).map(str::to_owned);
    Machine { cpu, cores: cores(), gpu }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The command as it was given, without the path of the program.
pub fn command() -> String {
    std::env::args_os().skip(1).fold("asymflow".to_owned(), |text, argument| text + " " + &argument.to_string_lossy())
}

/// The commit that this program was built from, with `+dirty` where its sources differed from it; none where git did
/// not know.
pub fn commit() -> Option<String> {
    option_env!("ASYMFLOW_COMMIT").map(str::to_owned)
}

/// Time of day as `YYYYMMDD-HHMMSS`, UTC.
pub fn timestamp() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{civil, commit};

    #[test]
    fn the_commit_is_that_of_the_checkout() {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs");
        let git = |arguments: &[&str]| {
            let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output();
            let output = output.ok().filter(|output| output.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let Some(head) = git(&["ls-files", "--error-unmatch", own]).and_then(|_| git(&["rev-parse", "HEAD"])) else {
            println!("skipped: the sources are no checkout, or git is missing");
            return;
        };
        let commit = commit().unwrap_or_default();
        let (hash, mark) = commit.split_at_checked(12).unwrap_or((&commit, ""));
        assert!(hash.len() == 12 && head.starts_with(hash), "{commit} for {head}");
        assert!(["", "+dirty"].contains(&mark), "{commit}");
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}
