//! Loaded into what `gramine_stand_in` runs: memory shared with the host looks like a character device, as Gramine shows it.

use std::ffi::{c_char, c_int, c_uint};

use nix::libc;

/// The system's answer, which is the caller's to make sense of.
///
/// # Safety
/// As of the system's own.
unsafe fn ask(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, about: *mut libc::statx) -> c_int {
    // SAFETY: the caller's, as is.
    unsafe { libc::syscall(libc::SYS_statx, at, path, flags, mask, about) as c_int }
}

/// In place of the C library's, by which Rust's `metadata` asks.
///
/// # Safety
/// As of the C library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    about: *mut libc::statx,
) -> c_int {
    // SAFETY: numbers, of which none is none.
    let mut shared: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a path that ends with a zero, and a structure of the right size.
    let is_there =
        unsafe { ask(libc::AT_FDCWD, c"/dev/shm".as_ptr(), 0, libc::STATX_BASIC_STATS, &raw mut shared) } == 0;
    // SAFETY: the caller's, as is.
    let done = unsafe { ask(at, path, flags, mask, about) };
    // SAFETY: what the system has just written, where it has.
    if let (0, Some(about)) = (done, unsafe { about.as_mut() }) {
        let is_of = (about.stx_dev_major, about.stx_dev_minor) == (shared.stx_dev_major, shared.stx_dev_minor);
        let kind = u32::from(about.stx_mode) & libc::S_IFMT;
        if is_there && is_of && kind == libc::S_IFREG {
            about.stx_mode ^= (libc::S_IFREG ^ libc::S_IFCHR) as u16;
        }
    }
    done
}
