//! What was not read of a folder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::data::files::{is_clutter, name_of};

/// Files that are no images, counted by what their names end in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut(BTreeMap<String, usize>);

impl LeftOut {
    pub(super) fn count(&mut self, path: &Path) {
        let name = name_of(path);
        let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy().to_lowercase()));
        let kind = match extension {
            _ if name.starts_with("._") => "._*".to_owned(),
            _ if is_clutter(path) => name,
            _ if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) && !path.exists() => {
                "broken links".to_owned()
            }
            Some(extension) => extension,
            None => "without an extension".to_owned(),
        };
        *self.0.entry(kind).or_default() += 1;
    }
}

impl fmt::Display for LeftOut {
    /// `; left out: 3 .txt, 1 .DS_Store`, or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let kinds: Vec<String> =
            self.0.iter().map(|(kind, count)| format!("{count} {}", kind.escape_debug())).collect();
        write!(f, "; left out: {}", kinds.join(", "))
    }
}
