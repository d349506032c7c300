//! Network units.

use super::Nonconformance;
use crate::backend::ResidualBackend;

/// Checks everything the traits promise of network units.
///
/// # Errors
/// The first broken promise.
pub fn networks(_backend: &dyn ResidualBackend) -> Result<(), Nonconformance> {
    Ok(())
}
