//! Many messages with one system call: sendmmsg(2), recvmmsg(2), writev(2).
//! The structs the kernel reads are made once, and hold pointers only while a
//! call lasts.
//!
//! The calls are made directly: musl's sendmmsg is a loop of sendmsg.

use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;

use crate::codec::arrival::Message;
use crate::codec::batch::{self, Batch};
use crate::codec::join::Piece;
use crate::codec::virtio;

/// Room for one control message with a number, aligned as `struct cmsghdr`.
type Control = [u64; 3];

/// Sends batches.
#[derive(Debug)]
pub struct Sender {
    parts: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in it are written anew before each call, by the thread
// that makes it, and read by nobody after it.
#[allow(unsafe_code)]
unsafe impl Send for Sender {}

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    pub fn new() -> Self {
        Self {
            parts: Vec::with_capacity(batch::PIECES),
            names: Vec::with_capacity(batch::MESSAGES),
            controls: Vec::with_capacity(batch::MESSAGES),
            headers: Vec::with_capacity(batch::MESSAGES),
        }
    }

    /// Sends all messages of the batch, whose pieces are parts of `memory`.
    /// Goes on after one that failed, and calls `failed` with its index.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        memory: &[u8],
        batch: &Batch,
        mut failed: impl FnMut(usize, io::Error),
    ) {
        self.fill(memory, batch);
        let mut sent = 0;
        while let Some(rest) = self.headers.get_mut(sent..).filter(|it| !it.is_empty()) {
            // SAFETY: `rest` is an array of that length whose pointers lead
            // into our own vectors and `memory`, which outlive the call.
            #[allow(unsafe_code)]
            let result = unsafe {
                libc::syscall(
                    libc::SYS_sendmmsg,
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len(),
                    0,
                )
            };
            match usize::try_from(result) {
                Ok(count) => sent += count.max(1),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        failed(sent, error);
                        sent += 1;
                    }
                }
            }
        }
    }

    fn fill(&mut self, memory: &[u8], batch: &Batch) {
        self.parts.clear();
        self.names.clear();
        self.controls.clear();
        self.headers.clear();
        for piece in batch.pieces() {
            self.parts.push(part(&memory[piece.start..piece.end]));
        }
        for message in batch.messages() {
            self.names.push(name(message.to));
            // Datagrams are shorter than 64 KiB.
            self.controls.push(segment(message.datagram as u16));
        }
        for (index, message) in batch.messages().iter().enumerate() {
            // SAFETY: all zeros is a valid `mmsghdr`.
            #[allow(unsafe_code)]
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            let to = &mut header.msg_hdr;
            to.msg_name = (&raw mut self.names[index]).cast();
            to.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            to.msg_iov = self.parts[message.pieces.clone()].as_mut_ptr();
            to.msg_iovlen = message.pieces.len() as _;
            if message.count > 1 {
                to.msg_control = (&raw mut self.controls[index]).cast();
                to.msg_controllen = size_of::<Control>() as _;
            }
            self.headers.push(header);
        }
    }
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        // Only read where it is sent or written from.
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn name(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*address.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

/// `struct cmsghdr` with a number, as 64-bit Linux lays it out: its length,
/// level and type, then the data.
fn segment(length: u16) -> Control {
    let [a, b] = length.to_ne_bytes();
    let level = (libc::SOL_UDP as u32).to_ne_bytes();
    let kind = (libc::UDP_SEGMENT as u32).to_ne_bytes();
    let mut both = [0; 8];
    both[..4].copy_from_slice(&level);
    both[4..].copy_from_slice(&kind);
    [
        16 + 2,
        u64::from_ne_bytes(both),
        u64::from_ne_bytes([a, b, 0, 0, 0, 0, 0, 0]),
    ]
}

/// The segment size that UDP_GRO told.
fn segment_of(control: &Control, length: usize) -> Option<u16> {
    let both = control[1].to_ne_bytes();
    let number =
        |at: usize| i32::from_ne_bytes([both[at], both[at + 1], both[at + 2], both[at + 3]]);
    let told = length >= 20 && number(0) == libc::SOL_UDP && number(4) == libc::UDP_GRO;
    let [a, b, c, d, ..] = control[2].to_ne_bytes();
    told.then(|| i32::from_ne_bytes([a, b, c, d]))
        .and_then(|size| u16::try_from(size).ok())
}

/// Longest message, bytes: UDP's own length has 16 bits.
const SLOT: usize = 65536;
/// Messages of one call.
const SLOTS: usize = 64;
/// Received by one call, bytes; what the caches like.
const BYTES: usize = 256 << 10;

/// Receives batches into memory of its own.
#[derive(Debug)]
pub struct Receiver {
    pub memory: Vec<u8>,
    parts: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
    /// Of the last batch, bytes.
    longest: usize,
    bytes: usize,
}

// SAFETY: as for `Sender`.
#[allow(unsafe_code)]
unsafe impl Send for Receiver {}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    pub fn new() -> Self {
        let empty = name(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        Self {
            memory: vec![0; SLOT * SLOTS],
            parts: Vec::with_capacity(SLOTS),
            names: vec![empty; SLOTS],
            controls: vec![Control::default(); SLOTS],
            headers: Vec::with_capacity(SLOTS),
            longest: 0,
            bytes: 0,
        }
    }

    /// Waits for a message, and takes what else is there. Returns how many.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // Of long messages fewer.
        let count = (BYTES / self.longest.max(1)).clamp(4, SLOTS);
        self.fill(count);
        // SAFETY: `headers` is an array of that length whose pointers lead
        // into our own vectors, which outlive the call and which nothing else
        // refers to while it lasts.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::syscall(
                libc::SYS_recvmmsg,
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        let lengths = self.headers[..count].iter().map(|it| it.msg_len as usize);
        (self.longest, self.bytes) = lengths.fold((0, 0), |(longest, bytes), length| {
            (longest.max(length), bytes + length)
        });
        Ok(count)
    }

    /// Of the last batch, all messages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn fill(&mut self, count: usize) {
        self.parts.clear();
        self.headers.clear();
        for slot in self.memory.chunks_exact_mut(SLOT).take(count) {
            self.parts.push(libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: slot.len(),
            });
        }
        for index in 0..count {
            // SAFETY: all zeros is a valid `mmsghdr`.
            #[allow(unsafe_code)]
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            let from = &mut header.msg_hdr;
            from.msg_name = (&raw mut self.names[index]).cast();
            from.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            from.msg_iov = &raw mut self.parts[index];
            from.msg_iovlen = 1;
            from.msg_control = (&raw mut self.controls[index]).cast();
            from.msg_controllen = size_of::<Control>() as _;
            self.headers.push(header);
        }
    }

    /// One of the last batch. `None`: it was longer than can be.
    pub fn message(&self, index: usize) -> Option<Message> {
        let header = &self.headers[index];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let name = &self.names[index];
        let host = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
        let start = index * SLOT;
        let control = header.msg_hdr.msg_controllen as usize;
        Some(Message {
            from: SocketAddrV4::new(host, u16::from_be(name.sin_port)),
            bytes: Piece {
                start,
                end: start + header.msg_len as usize,
            },
            datagram: segment_of(&self.controls[index], control),
        })
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct Writer {
    parts: Vec<libc::iovec>,
}

// SAFETY: as for `Sender`.
#[allow(unsafe_code)]
unsafe impl Send for Writer {}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    pub fn new() -> Self {
        Self {
            parts: Vec::with_capacity(libc::UIO_MAXIOV as usize),
        }
    }

    /// Writes one frame, of these pieces of `memory`, with its virtio header.
    pub fn write(
        &mut self,
        queue: &File,
        header: &[u8; virtio::LENGTH],
        memory: &[u8],
        pieces: impl Iterator<Item = Piece>,
    ) -> io::Result<()> {
        self.parts.clear();
        self.parts.push(part(header));
        let pieces = pieces.map(|piece| part(&memory[piece.start..piece.end]));
        self.parts.extend(pieces);
        // SAFETY: the vector's pointers lead into `header` and `memory`, which
        // outlive the call.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::writev(
                queue.as_raw_fd(),
                self.parts.as_ptr(),
                self.parts.len() as libc::c_int,
            )
        };
        match result {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
