use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::disk::{Disk, OsDisk};
use super::error::{SealError, WitnessError};
use super::format;
use super::guard::{FileGuard, Guard, GuardError, Mark, Witness};
use super::key::{Binding, SealingKey};
use super::store::{SealedStore, file_name};

const LABEL: &str = "ledger";

pub(super) fn key(byte: u8) -> SealingKey {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("_sgx_mrenclave"), [byte; 16]).unwrap();
    SealingKey::gramine_at(folder.path(), Binding::Enclave).unwrap()
}

/// A folder for sealed files and one for the guard.
pub(super) struct Place(tempfile::TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn store(&self) -> SealedStore {
        self.store_under(&key(1))
    }

    fn store_under(&self, key: &SealingKey) -> SealedStore {
        let guard = FileGuard::open(&self.0.path().join("guard"), key).unwrap();
        SealedStore::open(&self.0.path().join("sealed"), key.clone(), Box::new(guard)).unwrap()
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.0.path().join("sealed")
    }

    fn sealed(&self) -> PathBuf {
        self.0.path().join("sealed").join(file_name(LABEL))
    }

    fn guard(&self) -> PathBuf {
        self.guard_of(LABEL)
    }

    pub(super) fn guard_of(&self, label: &str) -> PathBuf {
        self.0.path().join("guard").join(format!("{label}.guard"))
    }

    fn saved(contents: &[&[u8]]) -> Self {
        let place = Self::new();
        let mut store = place.store();
        contents.iter().for_each(|content| store.save(LABEL, content).unwrap());
        place
    }
}

fn loaded(store: &mut SealedStore) -> Vec<u8> {
    store.load(LABEL).unwrap().unwrap().to_vec()
}

#[test]
fn what_was_saved_is_loaded_by_this_store_and_the_next() {
    let place = Place::new();
    let mut store = place.store();
    assert!(store.load(LABEL).unwrap().is_none());
    for content in [b"".as_slice(), b"one", &[7; 100_000]] {
        store.save(LABEL, content).unwrap();
        assert_eq!(loaded(&mut store), content);
        assert_eq!(loaded(&mut place.store()), content);
    }
    store.save("cache", b"other").unwrap();
    assert_eq!(loaded(&mut store), [7; 100_000]);
    assert_eq!(*store.load("cache").unwrap().unwrap(), b"other");
}

#[test]
fn a_new_process_goes_on_counting_where_the_last_one_stopped() {
    let place = Place::saved(&[b"1", b"2"]);
    place.store().save(LABEL, b"3").unwrap();
    assert_eq!(place.store().witness(LABEL).unwrap().unwrap().sequence(), 3);
}

#[test]
fn the_host_sees_neither_the_content_nor_that_it_is_the_same() {
    let place = Place::saved(&[b"a secret of some length"]);
    let first = std::fs::read(place.sealed()).unwrap();
    assert!(!first.windows(8).any(|window| b"a secret of some length".windows(8).any(|secret| secret == window)));
    place.store().save(LABEL, b"a secret of some length").unwrap();
    let second = std::fs::read(place.sealed()).unwrap();
    let same = first.iter().zip(&second).rev().take(16 + 23).filter(|(a, b)| a == b).count();
    assert!(same < 8, "{same} of 39 bytes are alike");
}

#[test]
fn only_labels_that_make_file_names_are_taken() {
    let place = Place::new();
    for label in ["", "a/b", "..", "a.b", "A", "ä", &"x".repeat(65)] {
        assert!(matches!(place.store().save(label, b""), Err(SealError::Label { .. })), "{label}");
        assert!(matches!(place.store().load(label), Err(SealError::Label { .. })), "{label}");
    }
    place.store().save(&"x".repeat(64), b"").unwrap();
}

#[test]
fn too_much_is_refused_before_it_is_read() {
    let place = Place::saved(&[&[0; 1000]]);
    let mut store = place.store().with_limit(999);
    assert!(matches!(store.save("other", &[0; 1000]), Err(SealError::TooLarge { limit_bytes: 999, .. })));
    std::fs::write(place.sealed(), vec![0; 5000]).unwrap();
    assert!(matches!(store.load(LABEL), Err(SealError::TooLarge { limit_bytes: 999, .. })));
    assert_eq!(OsDisk.read(&place.sealed(), 100).unwrap().unwrap().len(), 101);
}

#[test]
fn another_key_opens_nothing() {
    let place = Place::saved(&[b"one"]);
    assert!(matches!(place.store_under(&key(2)).load(LABEL), Err(SealError::Guard(GuardError::Forged { .. }))));
    std::fs::remove_file(place.guard()).unwrap();
    assert!(matches!(place.store_under(&key(2)).load(LABEL), Err(SealError::Unauthentic { .. })));
    let host = SealingKey::insecure_host_file(&place.0.path().join("key")).unwrap();
    assert!(matches!(place.store_under(&host).load(LABEL), Err(SealError::OtherBinding { .. })));
}

#[test]
fn every_flipped_byte_and_every_length_is_an_error() {
    let place = Place::saved(&[b"some content"]);
    let good = std::fs::read(place.sealed()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        std::fs::write(place.sealed(), &bad).unwrap();
        assert!(place.store().load(LABEL).is_err(), "byte {at}");
        std::fs::write(place.sealed(), &good[..at]).unwrap();
        assert!(matches!(place.store().load(LABEL), Err(SealError::Malformed { .. })), "{at} bytes");
    }
    std::fs::write(place.sealed(), [good.as_slice(), &[0]].concat()).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::Malformed { .. })));
    std::fs::write(place.sealed(), &good).unwrap();
    assert_eq!(loaded(&mut place.store()), b"some content");
}

#[test]
fn what_is_wrong_with_a_header_is_said() {
    let place = Place::saved(&[b"one"]);
    let good = std::fs::read(place.sealed()).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        std::fs::write(place.sealed(), bad).unwrap();
        place.store().load(LABEL).unwrap_err().to_string()
    };
    assert_eq!(with(0, b'X'), "the file of ledger is no sealed file");
    assert_eq!(with(8, 9), "the file of ledger has format version 9, this program reads 1");
    assert_eq!(with(10, 2), "the file of ledger was sealed under a key with another binding");
    assert_eq!(with(12, b'L'), "the file of ledger holds \"Ledger\"");
    assert_eq!(with(18, 7), "the file of ledger was altered, or sealed under another key");
    assert_eq!(with(26, 4), "the file of ledger is not as long as its header says");
}

#[test]
fn another_file_under_this_name_is_refused() {
    let place = Place::saved(&[b"one"]);
    place.store().save("cache", b"two").unwrap();
    std::fs::copy(place.sealed().with_file_name("cache.sealed"), place.sealed()).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::OtherLabel { .. })));
}

#[test]
fn an_old_state_and_a_missing_one_are_rollbacks() {
    let place = Place::saved(&[b"1"]);
    let old = std::fs::read(place.sealed()).unwrap();
    place.store().save(LABEL, b"2").unwrap();
    std::fs::write(place.sealed(), old).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::RolledBack { found: 1, at_least: 2, .. })));
    assert!(matches!(place.store().save(LABEL, b"3"), Err(SealError::RolledBack { .. })));
    std::fs::remove_file(place.sealed()).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::RolledBack { found: 0, at_least: 2, .. })));
}

#[test]
fn a_guard_that_was_rolled_back_or_emptied_is_noticed() {
    let place = Place::saved(&[b"1"]);
    let old = std::fs::read(place.guard()).unwrap();
    place.store().save(LABEL, b"2").unwrap();
    place.store().save(LABEL, b"3").unwrap();
    std::fs::write(place.guard(), old).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::GuardBehind { found: 3, guard: 1, .. })));
    std::fs::remove_file(place.guard()).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::GuardBehind { found: 3, guard: 0, .. })));
}

#[test]
fn a_forged_guard_is_refused() {
    let place = Place::saved(&[b"1"]);
    let good = std::fs::read(place.guard()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(place.guard(), bad).unwrap();
        assert!(matches!(place.store().load(LABEL), Err(SealError::Guard(GuardError::Forged { .. }))), "byte {at}");
        std::fs::write(place.guard(), &good[..at]).unwrap();
        assert!(matches!(place.store().load(LABEL), Err(SealError::Guard(GuardError::Forged { .. }))), "{at} bytes");
    }
    // The record of one label says nothing of another.
    std::fs::write(place.guard().with_file_name("cache.guard"), good).unwrap();
    assert!(matches!(place.store().load("cache"), Err(SealError::Guard(GuardError::Forged { .. }))));
}

/// Both folders rolled back together: the limit of a guard in files, which only a client's witness passes.
#[test]
fn a_rollback_of_both_folders_is_seen_by_a_witness_and_by_nothing_else() {
    let place = Place::saved(&[b"1"]);
    let both = (std::fs::read(place.sealed()).unwrap(), std::fs::read(place.guard()).unwrap());
    let mut store = place.store();
    let early = store.witness(LABEL).unwrap().unwrap();
    store.save(LABEL, b"2").unwrap();
    let late = store.witness(LABEL).unwrap().unwrap();
    store.check_witness(LABEL, &early).unwrap();
    store.check_witness(LABEL, &late).unwrap();

    std::fs::write(place.sealed(), both.0).unwrap();
    std::fs::write(place.guard(), both.1).unwrap();
    let mut rolled_back = place.store();
    assert_eq!(loaded(&mut rolled_back), b"1");
    rolled_back.check_witness(LABEL, &early).unwrap();
    assert!(matches!(rolled_back.check_witness(LABEL, &late), Err(WitnessError::RolledBack { found: 1, seen: 2, .. })));
    rolled_back.save(LABEL, b"another 2").unwrap();
    assert!(matches!(rolled_back.check_witness(LABEL, &late), Err(WitnessError::Forked { sequence: 2, .. })));
}

#[test]
fn forged_witnesses_are_refused() {
    let place = Place::saved(&[b"1"]);
    let mut store = place.store();
    assert!(store.witness("cache").unwrap().is_none());
    let bytes = store.witness(LABEL).unwrap().unwrap().to_bytes();
    store.check_witness(LABEL, &Witness::from_bytes(&bytes)).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes;
        bad[at] ^= 1;
        let forged = Witness::from_bytes(&bad);
        assert!(matches!(store.check_witness(LABEL, &forged), Err(WitnessError::Forged { .. })), "byte {at}");
    }
    store.save("cache", b"1").unwrap();
    let of_another = Witness::from_bytes(&bytes);
    assert!(matches!(store.check_witness("cache", &of_another), Err(WitnessError::Forged { .. })));
    let stranger = Place::new();
    let mut stranger = stranger.store_under(&key(2));
    assert!(matches!(stranger.check_witness(LABEL, &of_another), Err(WitnessError::Forged { .. })));
}

#[test]
fn a_second_process_on_the_same_folders_is_noticed() {
    let place = Place::saved(&[b"1"]);
    let (mut one, mut two) = (place.store(), place.store());
    assert_eq!(loaded(&mut one), b"1");
    two.save(LABEL, b"2").unwrap();
    assert!(matches!(one.save(LABEL, b"another 2"), Err(SealError::Overtaken { .. })));
    assert_eq!(loaded(&mut place.store()), b"2");
}

/// A disk whose power is cut after so many steps; a step is one operation, or one byte of a write.
#[derive(Clone, Debug)]
struct Cut(Arc<Mutex<World>>);

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) steps_left: usize,
    /// What the running system sees.
    pub(super) seen: BTreeMap<PathBuf, Vec<u8>>,
    /// What outlives a power cut: the content that every name certainly has.
    pub(super) safe: BTreeMap<PathBuf, Vec<u8>>,
    /// Files whose content the system has not yet written out.
    pub(super) unsynced: BTreeMap<PathBuf, ()>,
    /// Names that the system has changed and not yet written out: from, to.
    pub(super) renamed: Option<(PathBuf, PathBuf)>,
    /// A disk that promises and does nothing, to see that this test can fail.
    pub(super) lies: bool,
}

impl World {
    fn step(&mut self) -> std::io::Result<()> {
        match self.steps_left.checked_sub(1) {
            Some(left) => self.steps_left = left,
            None => return Err(std::io::Error::other("the power is cut")),
        }
        Ok(())
    }

    /// What may be found after the cut: names old or new, and content that was not synced there or not.
    pub(super) fn after_the_cut(&self) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
        let mut worlds = vec![self.seen.clone(), self.safe.clone()];
        // What was synced before something was added to it is there; a file that was begun anew may be empty.
        let mut emptied = self.seen.clone();
        for path in self.unsynced.keys() {
            let safe =
                self.safe.get(path).filter(|safe| self.seen.get(path).is_some_and(|seen| seen.starts_with(safe)));
            emptied.insert(path.clone(), safe.cloned().unwrap_or_default());
        }
        worlds.push(emptied);
        if let Some((from, to)) = &self.renamed {
            let mut old_names = self.seen.clone();
            if let Some(content) = old_names.remove(to) {
                old_names.insert(from.clone(), content);
            }
            old_names.extend(self.safe.get(to).map(|content| (to.clone(), content.clone())));
            worlds.push(old_names);
        }
        worlds
    }
}

impl Disk for Cut {
    fn read(&self, path: &Path, _limit_bytes: u64) -> std::io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().seen.get(path).cloned())
    }

    fn open(&self, path: &Path) -> std::io::Result<Option<Box<dyn std::io::Read>>> {
        let content = self.0.lock().unwrap().seen.get(path).cloned();
        Ok(content.map(|content| -> Box<dyn std::io::Read> { Box::new(std::io::Cursor::new(content)) }))
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.step()?;
        world.unsynced.insert(path.to_owned(), ());
        for &byte in bytes {
            world.step()?;
            world.seen.get_mut(path).unwrap().push(byte);
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.step()?;
        world.seen.insert(path.to_owned(), Vec::new());
        world.unsynced.insert(path.to_owned(), ());
        for &byte in bytes {
            world.step()?;
            world.seen.get_mut(path).unwrap().push(byte);
        }
        Ok(())
    }

    fn sync(&mut self, path: &Path) -> std::io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.step()?;
        if !world.lies {
            world.unsynced.remove(path);
            let content = world.seen[path].clone();
            world.safe.insert(path.to_owned(), content);
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.step()?;
        let content = world.seen.remove(from).unwrap();
        world.seen.insert(to.to_owned(), content);
        if world.unsynced.remove(from).is_some() {
            world.unsynced.insert(to.to_owned(), ());
        }
        world.renamed = Some((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_folder(&mut self, _folder: &Path) -> std::io::Result<()> {
        let mut world = self.0.lock().unwrap();
        world.step()?;
        world.renamed = None;
        world.safe = world.seen.clone();
        Ok(())
    }
}

pub(super) fn store_on(world: &Arc<Mutex<World>>, key: &SealingKey) -> SealedStore {
    let disk = || Box::new(Cut(world.clone()));
    let guard = FileGuard::on(disk(), "guard".into(), key);
    SealedStore::on(disk(), "sealed".into(), key.clone(), Box::new(guard))
}

/// Saves once with the power cut after `steps`, and gives whether that was reported as done, and everything that may be
/// found afterwards.
fn cut_after(before: &World, steps: usize, key: &SealingKey) -> (bool, Vec<BTreeMap<PathBuf, Vec<u8>>>) {
    let world = Arc::new(Mutex::new(World { steps_left: steps, ..before.clone() }));
    let saved = store_on(&world, key).save(LABEL, b"the new content").is_ok();
    let worlds = world.lock().unwrap().after_the_cut();
    (saved, worlds)
}

/// Whether saving was reported as done before the cut, and what a new process then finds.
type Found = (bool, Result<Option<Vec<u8>>, SealError>);

fn found_after_every_cut(contents_before: &[&[u8]], lies: bool) -> Vec<Found> {
    let key = key(1);
    let whole = Arc::new(Mutex::new(World { steps_left: usize::MAX, ..World::default() }));
    contents_before.iter().for_each(|content| store_on(&whole, &key).save(LABEL, content).unwrap());
    let before = World { lies, ..whole.lock().unwrap().clone() };
    let mut found = Vec::new();
    for steps in 0.. {
        let (saved, worlds) = cut_after(&before, steps, &key);
        for files in worlds {
            let world = World { steps_left: usize::MAX, seen: files.clone(), safe: files, ..World::default() };
            let world = Arc::new(Mutex::new(world));
            let content = store_on(&world, &key).load(LABEL).map(|content| content.map(|bytes| bytes.to_vec()));
            // What a crash has left behind must not stand in the way of the next save either.
            if content.is_ok() {
                store_on(&world, &key).save(LABEL, b"later").unwrap();
                assert_eq!(loaded(&mut store_on(&world, &key)), b"later");
            }
            found.push((saved, content));
        }
        if saved {
            assert!(steps > 150, "{steps} steps are fewer than the bytes that were written");
            return found;
        }
    }
    unreachable!("saving ends");
}

#[test]
fn after_a_power_cut_at_any_byte_the_old_content_or_the_new_is_found() {
    let mut news = 0;
    for (saved, content) in found_after_every_cut(&[b"older", b"the old content"], false) {
        let content = content.unwrap().unwrap();
        let is_new = content == b"the new content";
        assert!(is_new || (content == b"the old content" && !saved), "{:?}", String::from_utf8_lossy(&content));
        news += usize::from(is_new);
    }
    assert!(news > 50, "{news}");
    for (saved, content) in found_after_every_cut(&[], false) {
        let content = content.unwrap();
        assert!(content.as_deref() == Some(b"the new content") || (content.is_none() && !saved));
    }
}

#[test]
fn a_disk_that_syncs_nothing_is_caught_by_the_same_test() {
    let found = found_after_every_cut(&[b"older", b"the old content"], true);
    assert!(found.iter().any(|(_, content)| content.is_err()));
}

/// A host stops the enclave before it has recorded a state, lets it record another of the same number, and then puts back
/// the first.
#[test]
fn a_state_that_was_sealed_and_never_recorded_does_not_come_back() {
    let place = Place::saved(&[b"1"]);
    let before = std::fs::read(place.guard()).unwrap();
    let first = std::fs::read(place.sealed()).unwrap();
    place.store().save(LABEL, b"never recorded").unwrap();
    let never_recorded = std::fs::read(place.sealed()).unwrap();
    std::fs::write(place.guard(), before).unwrap();
    std::fs::write(place.sealed(), first).unwrap();

    place.store().save(LABEL, b"recorded").unwrap();
    std::fs::write(place.sealed(), never_recorded).unwrap();
    assert!(matches!(place.store().load(LABEL), Err(SealError::Forked { sequence: 2, .. })));
}

/// A guard whose recording fails when told to.
#[derive(Debug, Default)]
struct Flaky {
    latest: Arc<Mutex<Option<Mark>>>,
    fails: Arc<Mutex<bool>>,
}

impl Guard for Flaky {
    fn latest(&self, _label: &str) -> Result<Option<Mark>, GuardError> {
        Ok(*self.latest.lock().unwrap())
    }

    fn advance(&mut self, _label: &str, mark: Mark) -> Result<(), GuardError> {
        if *self.fails.lock().unwrap() {
            return Err(GuardError::Io { path: "counter".into(), error: std::io::Error::other("away") });
        }
        *self.latest.lock().unwrap() = Some(mark);
        Ok(())
    }
}

#[test]
fn no_number_is_used_twice_when_the_guard_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let guard = Flaky::default();
    let fails = guard.fails.clone();
    let mut store = SealedStore::open(folder.path(), key(1), Box::new(guard)).unwrap();
    store.save(LABEL, b"1").unwrap();
    *fails.lock().unwrap() = true;
    assert!(matches!(store.save(LABEL, b"2"), Err(SealError::Guard(_))));
    *fails.lock().unwrap() = false;
    store.save(LABEL, b"3").unwrap();
    assert_eq!(store.witness(LABEL).unwrap().unwrap().sequence(), 3);
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(format::open(&key(1), LABEL, bytes).is_err());
    }

    #[test]
    fn any_changed_file_is_an_error(
        content in proptest::collection::vec(any::<u8>(), 0..100),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let good = format::seal(&key(1), LABEL, 5, &content).unwrap();
        let (sequence, opened) = format::open(&key(1), LABEL, good.clone()).unwrap();
        prop_assert_eq!((sequence, opened.as_slice()), (5, content.as_slice()));
        let mut bad = good.clone();
        for (at, change) in changes {
            bad[at.index(good.len())] ^= change;
        }
        prop_assert!(bad == good || format::open(&key(1), LABEL, bad).is_err());
    }

    #[test]
    fn any_witness_bytes_are_read_back(bytes in any::<[u8; 32]>(), sequence in any::<u64>()) {
        let witness = Witness::sign(&key(1), LABEL, Mark { sequence, digest: bytes });
        prop_assert_eq!(Witness::from_bytes(&witness.to_bytes()), witness);
    }
}
