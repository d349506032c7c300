//! Sealed files, guards and witnesses, which a host may write as it likes.

use std::hint::black_box;
use std::io::Read;
use std::sync::LazyLock;

use asymflow_enclave::seal::{
    Binding, Durability, FileGuard, Guard, SealedLog, SealedReader, SealedStore, SealingKey, Witness,
};
use tempfile::TempDir;

/// The label of every state here.
const LABEL: &str = "state";

/// A key that is the same in every process.
static KEY: LazyLock<SealingKey> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("_sgx_mrenclave"), [7; 16]).expect("a key in it");
    SealingKey::gramine_at(folder.path(), Binding::Enclave).expect("a key")
});

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn file_guard(folder: &TempDir) -> FileGuard {
    FileGuard::open(&folder.path().join("guard"), &KEY).expect("a guard")
}

fn store(folder: &TempDir) -> SealedStore {
    SealedStore::open(&folder.path().join("sealed"), KEY.clone(), Box::new(file_guard(folder))).expect("a store")
}

/// The file of a sealed state, and of a sealed stream; the first 72 bytes are a witness as well.
pub fn sealed(input: &[u8]) {
    let folder = folder();
    let mut store = store(&folder);
    std::fs::write(folder.path().join(format!("sealed/{LABEL}.sealed")), input).expect("a sealed file");
    if let Ok(content) = store.load(LABEL) {
        assert!(content.is_some_and(|content| content.len() < input.len()));
    }
    let mut content = Vec::new();
    let read = SealedReader::open(input, &KEY, LABEL).and_then(|mut stream| stream.read_to_end(&mut content));
    assert!(read.is_err() || content.len() < input.len());
    // The state above may have been an index of a log, and this is its file.
    std::fs::write(folder.path().join(format!("sealed/{LABEL}.0.log")), input).expect("a file of a log");
    for durability in [Durability::Relaxed, Durability::Strict] {
        let mut each = |block: &[u8]| assert!(block.len() < input.len());
        let _ = black_box(SealedLog::open(&mut store, LABEL, [0; 32], durability, 100, &mut each));
    }
    if let Some(bytes) = input.first_chunk::<{ Witness::BYTES }>() {
        let witness = Witness::from_bytes(bytes);
        assert_eq!(witness.to_bytes(), *bytes);
        assert!(store.check_witness(LABEL, &witness).is_err());
    }
}

/// The file of a guard.
pub fn guard(input: &[u8]) {
    let folder = folder();
    let guard = file_guard(&folder);
    std::fs::write(folder.path().join(format!("guard/{LABEL}.guard")), input).expect("a guard's file");
    let _ = black_box(guard.latest(LABEL));
}

/// A sealed file and its guard's, for the corpus.
///
/// # Panics
/// They cannot be written or read.
pub fn files(content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let folder = folder();
    store(&folder).save(LABEL, content).expect("a saved state");
    let read = |name: String| std::fs::read(folder.path().join(name)).expect("a file that was just written");
    (read(format!("sealed/{LABEL}.sealed")), read(format!("guard/{LABEL}.guard")))
}
