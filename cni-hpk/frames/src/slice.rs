//! How long a thread asks to run in one go.

use std::io;
use std::mem::size_of;

/// `struct sched_attr` of linux/sched/types.h, its first version.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// For an ordinary thread, from Linux 6.12: its slice, ns.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The kernel's own choice.
pub const DEFAULT: u64 = 0;

/// Asks for slices of `nanoseconds` for the calling thread, its share of the
/// processor unchanged: with shorter ones than others have it is put in sooner
/// when it wakes. Older kernels take no notice.
pub fn set(nanoseconds: u64) -> io::Result<()> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes at most `size` bytes to the struct; 0 is the
    // calling thread.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.runtime = nanoseconds;
    // SAFETY: the kernel reads the struct, whose size it was told in it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
