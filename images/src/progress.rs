//! What a pull reports while it runs.

/// One thing that happened during a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The reference was resolved to this manifest digest, with this many layers and compressed bytes.
    Resolved {
        /// Digest of the image's manifest for this platform.
        digest: String,
        /// Number of layers.
        layers: usize,
        /// Sum of the layers' compressed sizes, bytes.
        bytes: u64,
    },
    /// Another process is already pulling the image.
    Waiting {
        /// `host pid N` of that process.
        holder: String,
    },
    /// This many more compressed bytes arrived.
    Downloaded {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// A download failed in a way that may pass; it is tried again.
    Retrying {
        /// The blob.
        digest: String,
        /// What went wrong.
        cause: String,
    },
    /// All layers are here; they are being merged.
    Packing {
        /// Uncompressed bytes of file data to be packed.
        bytes: u64,
    },
    /// This many more uncompressed bytes were given to the packer.
    Packed {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// The image is in the store.
    Stored {
        /// Size of the squashfs, bytes.
        bytes: u64,
    },
}

/// Whoever wants to hear of a pull's progress. Called from several tasks at once; must not block.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _: Event) {}
}
