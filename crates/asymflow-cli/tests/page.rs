//! The trade-off page of the published results, in a browser: click, filter, tooltip, labels at two widths, nothing on the console.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use std::path::{Path, PathBuf};
use std::process::Command;

const PROBE: &str = include_str!("probe.html");
const WATCH: &str = "<head><script>window.problems = []; addEventListener('error', (e) => problems.push(e.message)); \
                     console.error = (...words) => problems.push(words.join(' '));</script>";

fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome", "chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
}

/// The page of the results that are published.
fn published(folder: &Path) -> PathBuf {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    let copies = folder.join("results");
    std::fs::create_dir(&copies).unwrap();
    for entry in std::fs::read_dir(results).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|e| e == "json") {
            std::fs::copy(entry.path(), copies.join(entry.file_name())).unwrap();
        }
    }
    let page = folder.join("page.html");
    let mut report = Command::new(env!("CARGO_BIN_EXE_asymflow"));
    report.args(["report", "--out"]).arg(&copies).arg("--html").arg(&page);
    assert!(report.status().unwrap().success());
    page
}

#[test]
fn the_page_of_the_published_results_works_in_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(published(folder.path())).unwrap();
    assert!(page.contains("asymml") && page.contains("delta"), "no mode is on the page");
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium is installed");
        return;
    };
    let probed = folder.path().join("probed.html");
    let watched = page.replacen("<head>", WATCH, 1).replacen("</body>", &format!("{PROBE}</body>"), 1);
    std::fs::write(&probed, watched).unwrap();
    for width in [700, 1400] {
        let mut run = Command::new(browser);
        run.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]);
        run.arg(format!("--user-data-dir={}", folder.path().join(width.to_string()).display()));
        run.arg(format!("--window-size={width},1000")).arg(format!("file://{}", probed.display()));
        let dom = String::from_utf8(run.output().unwrap().stdout).unwrap();
        let found = dom.split_once("data-found=\"").and_then(|(_, rest)| rest.split_once('"'));
        let (found, _) = found.unwrap_or_else(|| panic!("at {width} pixels the page did not come to its end"));
        let found: serde_json::Value = serde_json::from_slice(&decoded(found)).unwrap();
        let count = |key: &str| found[key].as_u64().unwrap();
        assert_eq!(found["problems"], serde_json::json!([]), "{width}: {found}");
        assert!(found["tip"].as_str().unwrap().contains("Strongest attack"), "{width}: {found}");
        assert!(found["details"].as_str().unwrap().contains("Where it comes from"), "{width}: {found}");
        assert!(count("labels") >= 3 && count("overlaps") == 0, "{width}: {found}");
        assert!(count("filtered") > 0 && count("filtered") < count("all") && count("chosen") == 1, "{width}: {found}");
        assert!(found["fits"].as_bool().unwrap() && found["named"].as_bool().unwrap(), "{width}: {found}");
    }
}

/// The bytes of hexadecimal digits.
fn decoded(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}
