//! A process that saves and saves, and is killed at any moment.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use asymflow_enclave::seal::{FileGuard, SealedStore, SealingKey};

const FOLDER: &str = "ASYMFLOW_TEST_SEAL_FOLDER";

fn store(folder: &Path) -> SealedStore {
    let key = SealingKey::insecure_host_file(&folder.join("key")).unwrap();
    let guard = FileGuard::open(&folder.join("guard"), &key).unwrap();
    SealedStore::open(&folder.join("sealed"), key, Box::new(guard)).unwrap()
}

/// The number that was saved last.
fn number(store: &mut SealedStore) -> u64 {
    let content = store.load("ledger").unwrap();
    content.map_or(0, |content| {
        // A number and then as many of its low bytes as make a file of several pages.
        let (number, rest) = content.split_first_chunk::<8>().unwrap();
        assert!(rest.len() == 20_000 && rest.iter().all(|byte| *byte == number[0]));
        u64::from_le_bytes(*number)
    })
}

/// Counts up in the sealed file and says every number once it is saved. Does nothing where it is run as a test.
#[test]
fn child_that_saves() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut store = store(Path::new(&folder));
    for next in number(&mut store) + 1.. {
        let mut content = next.to_le_bytes().to_vec();
        content.extend([next.to_le_bytes()[0]; 20_000]);
        store.save("ledger", &content).unwrap();
        println!("saved {next}");
    }
}

#[test]
fn a_killed_process_has_saved_what_it_said_and_at_most_one_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut said = 0;
    for delay in (0..40).map(|round| Duration::from_micros(round * 137)) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_saves", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let saved = |line: String| line.rsplit_once("saved ").map(|(_, number)| number.parse::<u64>().unwrap());
        said = lines.by_ref().map_while(Result::ok).find_map(saved).unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        // A pipe takes so short a line whole or not at all, so the last one is a number that was saved.
        said = lines.map_while(Result::ok).filter_map(saved).last().unwrap_or(said);
        let found = number(&mut store(folder.path()));
        assert!(found == said || found == said + 1, "{found} was found, {said} was said");
    }
    assert!(said > 40);
}
