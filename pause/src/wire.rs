//! The configuration a shim sends to `hpk-pause init` or `enter`, and its encoding: fields in
//! order, integers little-endian, byte strings and lists with a u32 length before them. Both ends
//! are built from one tree and shipped together, so there is no version in it.

/// Decoding failed: the two ends are not of one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed configuration: shim and hpk-pause are of different builds")
    }
}

impl std::error::Error for Malformed {}

/// A value with an encoding.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value off the front of `bytes`.
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed>;
}

/// Encodes a value by itself.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// Decodes a value that fills `bytes`.
pub fn decode<T: Wire>(mut bytes: &[u8]) -> Result<T, Malformed> {
    let value = T::get(&mut bytes)?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(Malformed)
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = bytes.split_at_checked(n).ok_or(Malformed)?;
    *bytes = tail;
    Ok(head)
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
                let head = take(bytes, size_of::<$int>())?;
                head.try_into().map(<$int>::from_le_bytes).map_err(|_| Malformed)
            }
        }
    )*};
}
wire_int!(u8, u32, u64, i32);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(bytes)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        let n = u32::get(bytes)? as usize;
        String::from_utf8(take(bytes, n)?.to_vec()).map_err(|_| Malformed)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        (0..u32::get(bytes)?).map(|_| T::get(bytes)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::get(bytes)? {
            Some(T::get(bytes)?)
        } else {
            None
        })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
        Ok((A::get(bytes)?, B::get(bytes)?))
    }
}

/// Declares a struct that is encoded field by field.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn get(bytes: &mut &[u8]) -> Result<Self, Malformed> {
                Ok(Self { $($field: Wire::get(bytes)?,)* })
            }
        }
    };
}

/// Index into the descriptors that come with the configuration.
pub type Fd = u32;

record! {
    /// Everything `init` or `enter` is told.
    pub struct Config {
        /// Namespaces to join: descriptor and CLONE_NEW… flag, in this order. A PID namespace
        /// means a fork: the child goes on, the parent ends.
        pub namespaces: Vec<(Fd, u32)>,
        /// Directory to chroot to after that (`enter` only).
        pub root: Option<Fd>,
        /// The container's set-up (`init` only).
        pub setup: Option<Setup>,
        pub process: Process,
    }
}

record! {
    /// What makes the file system and namespaces Apptainer gave into those the spec asks for.
    pub struct Setup {
        pub mounts: Vec<Mount>,
        /// Populate /dev (nodes, links, console): not if /dev is somebody else's.
        pub populate_dev: bool,
        /// Device nodes to bind in /dev.
        pub devices: Vec<Device>,
        pub hostname: Option<String>,
        pub domainname: Option<String>,
        /// The network namespace is new: bring `lo` up.
        pub loopback_up: bool,
        /// The cgroup namespace is new.
        pub new_cgroup_namespace: bool,
        /// Name (dots) and value.
        pub sysctls: Vec<(String, String)>,
        pub readonly_paths: Vec<String>,
        pub masked_paths: Vec<String>,
        pub readonly_root: bool,
        /// Of /, when all is mounted: as a mount's, 0 for private.
        pub root_propagation: u64,
        /// Apptainer mounts /proc and /sys; take away what the spec doesn't list.
        pub keep_proc: bool,
        pub keep_sys: bool,
    }
}

record! {
    /// One mount, in the spec's order.
    pub struct Mount {
        /// Absolute path in the container.
        pub destination: String,
        /// A detached tree to attach there; without it a new `kind` file system is mounted.
        pub tree: Option<Fd>,
        pub kind: String,
        pub source: String,
        /// MS_… flags (read-only, nosuid, …), of a tree applied on top of what it has.
        pub flags: u64,
        /// MS_… flags to take away from a tree (`rw`, `exec` …).
        pub clear_flags: u64,
        /// `flags` apply to the tree's submounts too (`rro` …).
        pub recursive_flags: bool,
        /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE with or without MS_REC; 0: leave.
        pub propagation: u64,
        /// The rest of the options, comma-separated.
        pub data: String,
    }
}

record! {
    /// A device node, as a bind of the host's or made anew.
    pub struct Device {
        /// Absolute path in the container.
        pub path: String,
        /// The host's node; without it, mknod.
        pub tree: Option<Fd>,
        /// S_IFCHR, S_IFBLK or S_IFIFO.
        pub kind: u32,
        /// Permission bits.
        pub mode: u32,
        pub major: u32,
        pub minor: u32,
        pub uid: u32,
        pub gid: u32,
        /// Failing to make it is worth a warning only.
        pub optional: bool,
    }
}

record! {
    /// The user's program.
    pub struct Process {
        pub args: Vec<String>,
        /// `NAME=value`.
        pub env: Vec<String>,
        pub cwd: String,
        pub uid: u32,
        pub gid: u32,
        pub groups: Vec<u32>,
        pub umask: Option<u32>,
        /// Bit sets. Absent: keep what is there.
        pub capabilities: Option<Capabilities>,
        pub rlimits: Vec<Rlimit>,
        pub oom_score_adj: Option<i32>,
        pub no_new_privileges: bool,
        /// In force from the program's first instruction on.
        pub seccomp: Option<Seccomp>,
        /// Allocate a terminal in the container's /dev/pts and send its master to the shim.
        pub terminal: bool,
        /// Columns and rows.
        pub console_size: Option<(u32, u32)>,
        /// stdin, stdout, stderr; empty with a terminal.
        pub stdio: Vec<Fd>,
    }
}

record! {
    /// A filter for seccomp(2).
    pub struct Seccomp {
        /// SECCOMP_FILTER_FLAG_….
        pub flags: u32,
        /// `struct sock_filter`, each as one integer: code, jump if true, jump if false, operand, from
        /// the lowest bits up.
        pub program: Vec<u64>,
    }
}

record! {
    /// Capability sets, bit n is capability n.
    pub struct Capabilities {
        pub bounding: u64,
        pub effective: u64,
        pub permitted: u64,
        pub inheritable: u64,
        pub ambient: u64,
    }
}

record! {
    /// `resource` is RLIMIT_….
    pub struct Rlimit {
        pub resource: u32,
        pub soft: u64,
        pub hard: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_its_encoding() {
        let config = Config {
            namespaces: vec![(3, 0x2000_0000)],
            root: Some(4),
            setup: Some(Setup {
                mounts: vec![Mount {
                    destination: "/data".into(),
                    tree: Some(7),
                    flags: 1,
                    ..Mount::default()
                }],
                sysctls: vec![("net.ipv4.ip_forward".into(), "1".into())],
                ..Setup::default()
            }),
            process: Process {
                args: vec!["/bin/sh".into(), "-c".into(), "échò".into()],
                oom_score_adj: Some(-5),
                capabilities: Some(Capabilities {
                    bounding: u64::MAX,
                    ..Capabilities::default()
                }),
                rlimits: vec![Rlimit {
                    resource: 7,
                    soft: 1024,
                    hard: u64::MAX,
                }],
                ..Process::default()
            },
        };
        assert_eq!(decode::<Config>(&encode(&config)), Ok(config));
    }

    #[test]
    fn a_short_or_overlong_encoding_is_refused() {
        let mut bytes = encode(&Config::default());
        bytes.push(0);
        assert_eq!(decode::<Config>(&bytes), Err(Malformed));
        bytes.truncate(bytes.len() - 2);
        assert_eq!(decode::<Config>(&bytes), Err(Malformed));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_without_allocating_it() {
        assert_eq!(decode::<String>(&u32::MAX.to_le_bytes()), Err(Malformed));
        assert_eq!(
            decode::<Vec<String>>(&u32::MAX.to_le_bytes()),
            Err(Malformed)
        );
    }
}
