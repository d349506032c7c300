//! What is published, in a browser: the trade-off page (click, filter, tooltip, labels at two widths, nothing on the console), and the plots.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers as well")]

use std::path::{Path, PathBuf};
use std::process::Command;

use asymflow_zoo::data::read_image;
use asymflow_zoo::network::Shape;

const PROBE: &str = include_str!("probe.html");
const PLOT_PROBE: &str = include_str!("plot-probe.html");
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
        let found = looked_at(browser, &probed, (width, 1000), None);
        let count = |key: &str| found[key].as_u64().unwrap();
        assert_eq!(found["problems"], serde_json::json!([]), "{width}: {found}");
        assert!(found["tip"].as_str().unwrap().contains("Strongest attack"), "{width}: {found}");
        assert!(found["details"].as_str().unwrap().contains("Where it comes from"), "{width}: {found}");
        assert!(count("labels") >= 3 && count("overlaps") == 0, "{width}: {found}");
        assert_ne!(found["first"], "all", "points of different networks do not compare");
        assert!(count("filtered") > 0 && count("filtered") < count("all") && count("chosen") == 1, "{width}: {found}");
        assert!(found["fits"].as_bool().unwrap() && found["named"].as_bool().unwrap(), "{width}: {found}");
    }
}

/// What the probe of a page found, in a window of this size; with a picture of it where there is to be one.
fn looked_at(browser: &str, page: &Path, (width, height): (usize, usize), picture: Option<&Path>) -> serde_json::Value {
    let profile = tempfile::tempdir().unwrap();
    let mut run = Command::new(browser);
    run.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]);
    run.args(picture.map(|path| format!("--screenshot={}", path.display())));
    run.arg(format!("--user-data-dir={}", profile.path().display()));
    run.arg(format!("--window-size={width},{height}")).arg(format!("file://{}", page.display()));
    let dom = String::from_utf8(run.output().unwrap().stdout).unwrap();
    let found = dom.split_once("data-found=\"").and_then(|(_, rest)| rest.split_once('"'));
    let (found, _) = found.unwrap_or_else(|| panic!("at {width} pixels the page did not come to its end"));
    serde_json::from_slice(&decoded(found)).unwrap()
}

#[test]
fn every_published_plot_is_readable_at_700_pixels_on_light_and_on_dark() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium is installed");
        return;
    };
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    let is_plot = |path: &PathBuf| path.extension().is_some_and(|e| e == "svg");
    let plots: Vec<_> =
        std::fs::read_dir(results).unwrap().map(|entry| entry.unwrap().path()).filter(is_plot).collect();
    assert!(plots.len() >= 10, "{} plots", plots.len());
    let folder = tempfile::tempdir().unwrap();
    for plot in plots {
        let (name, svg) = (plot.file_name().unwrap().to_string_lossy(), std::fs::read_to_string(&plot).unwrap());
        let size = |key: &str| svg.split_once(key).unwrap().1.split_once('"').unwrap().0.parse::<usize>().unwrap();
        let (width, height) = (size("width=\""), size("height=\""));
        assert_eq!(width, 700, "{name}");
        for (ground, back) in [("white", 255.0_f64), ("#0d1117", 16.0)] {
            let (page, picture) = (folder.path().join("plot.html"), folder.path().join("plot.png"));
            let body = format!("<!doctype html><body style=\"margin:0;background:{ground}\">{svg}{PLOT_PROBE}</body>");
            std::fs::write(&page, body).unwrap();
            let found = looked_at(browser, &page, (width, height), Some(&picture));
            assert_eq!(found["problems"], serde_json::json!([]), "{name}");
            assert!(found["texts"].as_u64().unwrap() >= 5, "{name}: text is to be text");
            let pixels = read_image(&picture, Shape::new(3, height, width), None).unwrap();
            let differs = |&&value: &&u8| (f64::from(value) - back).abs() > 64.0;
            let drawn = pixels.iter().filter(differs).count() as f64 / pixels.len() as f64;
            assert!((0.005..0.5).contains(&drawn), "{name} on {ground}: {drawn} of it is drawn");
        }
    }
}

/// The bytes of hexadecimal digits.
fn decoded(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}
