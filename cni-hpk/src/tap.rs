//! TAP devices (`linux/if_tun.h`), with virtio-net headers and offloads.
//!
//! With a virtio-net header before each frame (`IFF_VNET_HDR`) and offloads
//! on, the kernel hands out TCP and UDP super-frames of up to 64 KiB whole,
//! checksums unfinished, and takes them in the same way: nothing is cut or
//! summed between two such devices.
//!
//! [`Header`] is the 10-byte `virtio_net_hdr` (virtio 1.2, section 5.1.6), in
//! this machine's byte order, as Linux has it by default.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// `struct ifreq` of 64-bit Linux: the name, then the flags in a union.
const IFREQ: usize = 40;
const NAME: usize = 16;

/// The ioctls of `linux/if_tun.h`.
#[allow(unsafe_code)]
mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, [u8; super::IFREQ]);
    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, [u8; super::IFREQ]);
    nix::ioctl_write_int_bad!(set_persist, libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_read_bad!(get_header_size, libc::TUNGETVNETHDRSZ, libc::c_int);
}

/// How a TAP is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Each frame is preceded by a [`Header`]; all offloads the kernel has are on.
    pub offloads: bool,
    /// One of several queues of the device.
    pub multi_queue: bool,
    /// The device stays when its last descriptor is closed.
    pub persistent: bool,
    pub nonblocking: bool,
}

/// Which offloads the kernel took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// Frames are whole and summed.
    #[default]
    None,
    /// TCP super-frames and unfinished checksums.
    Tcp,
    /// UDP super-frames too (USO, Linux 6.2).
    TcpAndUdp,
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    pub file: File,
    pub offloads: Offloads,
}

/// Opens the TAP `name` in this thread's network namespace, and makes it if it
/// isn't there.
///
/// # Errors
/// `InvalidInput` for a name of more than 15 bytes; `ResourceBusy` where another
/// descriptor has the device; what the kernel says else.
pub fn open(name: &str, options: Options) -> io::Result<Tap> {
    let request = request(name, options)?;
    let mut how = File::options();
    how.read(true).write(true);
    if options.nonblocking {
        how.custom_flags(libc::O_NONBLOCK);
    }
    let file = how.open("/dev/net/tun")?;
    // SAFETY: the descriptor is open, and the request is a whole `struct ifreq`
    // that outlives the call, which keeps no pointer to it.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }?;
    if options.persistent {
        // SAFETY: the descriptor is open, and the argument is a number.
        #[allow(unsafe_code)]
        unsafe { ioctl::set_persist(file.as_raw_fd(), 1) }?;
    }
    let offloads = match options.offloads {
        true => enable_offloads(&file)?,
        false => Offloads::None,
    };
    Ok(Tap { file, offloads })
}

fn request(name: &str, options: Options) -> io::Result<[u8; IFREQ]> {
    if name.is_empty() || name.len() >= NAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no device name"),
        ));
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if options.offloads {
        flags |= libc::IFF_VNET_HDR;
    }
    if options.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = [0; IFREQ];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // They fit: all of these are among the low 16 bits.
    request[NAME..NAME + 2].copy_from_slice(&(flags as u16).to_ne_bytes());
    Ok(request)
}

/// Tells the kernel what whoever reads the device can take: everything.
fn enable_offloads(file: &File) -> io::Result<Offloads> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |offloads: libc::c_uint| {
        let argument = libc::c_int::try_from(offloads).unwrap_or(0);
        // SAFETY: the descriptor is open, and the argument is a number.
        #[allow(unsafe_code)]
        unsafe {
            ioctl::set_offload(file.as_raw_fd(), argument)
        }
    };
    let size = libc::c_int::try_from(Header::SIZE).unwrap_or(0);
    // SAFETY: the descriptor is open, and the number outlives the call.
    #[allow(unsafe_code)]
    unsafe { ioctl::set_header_size(file.as_raw_fd(), &size) }?;
    // A kernel before 6.2 refuses flags it doesn't know, all of them.
    if set(tcp | udp).is_ok() {
        return Ok(Offloads::TcpAndUdp);
    }
    set(tcp)?;
    Ok(Offloads::Tcp)
}

/// What a descriptor that came from elsewhere is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    /// A TAP whose frames have the 10-byte header.
    pub has_header: bool,
}

/// Looks at a descriptor that should be an attached TAP.
///
/// # Errors
/// `ENOTTY` where it is no TUN or TAP; `EBADFD` where it has no device.
pub fn describe(descriptor: impl AsFd) -> io::Result<Description> {
    let raw = descriptor.as_fd().as_raw_fd();
    let mut request = [0; IFREQ];
    let mut size = 0;
    // SAFETY: the descriptor is open, and what is written to outlives the calls.
    #[allow(unsafe_code)]
    unsafe {
        ioctl::get_interface(raw, &mut request)?;
        ioctl::get_header_size(raw, &mut size)?;
    }
    let flags = i32::from(u16::from_ne_bytes([request[NAME], request[NAME + 1]]));
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let name = request[..NAME].split(|byte| *byte == 0).next();
    Ok(Description {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        has_header: flags & wanted == wanted && usize::try_from(size) == Ok(Header::SIZE),
    })
}

/// What of a frame is left for the receiver, or its device, to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub flags: u8,
    pub segmentation: u8,
    /// Bytes of all the frame's headers.
    pub header_length: u16,
    /// Bytes of payload in each segment.
    pub segment_size: u16,
    /// Where the sum begins, bytes into the frame.
    pub checksum_start: u16,
    /// Where it is put, bytes after its start.
    pub checksum_offset: u16,
}

impl Header {
    /// Bytes.
    pub const SIZE: usize = 10;
    /// The checksum is to be finished.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// The checksum has been looked at and is right.
    pub const DATA_VALID: u8 = 2;
    pub const NOT_SEGMENTED: u8 = 0;
    pub const TCP4: u8 = 1;
    pub const TCP6: u8 = 4;
    pub const UDP: u8 = 5;
    /// Beside [`Self::TCP4`] or [`Self::TCP6`]: the flow has CWR set.
    pub const ECN: u8 = 0x80;

    /// The header in these bytes.
    pub fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let [flags, segmentation, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            segmentation,
            header_length: u16::from_ne_bytes([a, b]),
            segment_size: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment_size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.segmentation, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_and_read_back() {
        let header = Header {
            flags: Header::NEEDS_CHECKSUM,
            segmentation: Header::TCP6 | Header::ECN,
            header_length: 74,
            segment_size: 1400,
            checksum_start: 54,
            checksum_offset: 16,
        };
        assert_eq!(Header::parse(header.to_bytes()), header);
    }

    #[test]
    fn a_name_the_kernel_has_no_room_for_is_refused() {
        for name in ["", "sixteen-letters-"] {
            let error = request(name, Options::default()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(request("fifteen-letters", Options::default()).is_ok());
    }

    #[test]
    fn what_is_no_tap_is_told_apart() {
        let error = describe(File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
