//! Layers' lists of entries → the merged tree. Pure: no data is touched.
//!
//! Layers are applied from the lowest up, in each tar's order, by the image spec's rules
//! (<https://github.com/opencontainers/image-spec/blob/main/layer.md>): `.wh.NAME` removes NAME of lower layers,
//! `.wh..wh..opq` all of a folder's lower content; a folder over a folder gives it new metadata and keeps the content;
//! anything else over anything replaces it. As in containerd, a link on the way to an entry is followed inside the image.
//!
//! A file's data stays where it is, named by layer and index; each file in the merged tree knows the names it has
//! there. So a hard link outlives its target, and a link across layers stays one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::layer::{Entry, Kind, Listing, Meta};
use crate::limits;

/// The merged tree, in the order to be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// The root folder's metadata.
    pub root: Meta,
    /// Everything without data: folders before what is in them.
    pub nodes: Vec<Node>,
    /// Per layer: index of the entry → the file made of it.
    pub files: Vec<BTreeMap<usize, File>>,
}

/// A folder, link, device or pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Path without a slash at either end.
    pub path: Vec<u8>,
    /// Metadata.
    pub meta: Meta,
    /// What it is; never a file or hard link.
    pub kind: Kind,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// All its names, at least one, sorted.
    pub names: Vec<Vec<u8>>,
    /// Metadata.
    pub meta: Meta,
    /// Bytes.
    pub size: u64,
}

/// Why layers can't be merged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A hard link to nothing.
    #[error("layer {layer}: hard link {path:?} to {target:?}, which doesn't exist")]
    MissingLinkTarget {
        /// Layer, from 0.
        layer: usize,
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A path that links have made too long.
    #[error("layer {layer}: {path:?} has more than {limit} bytes where its links lead", limit = limits::PATH)]
    LongPath {
        /// Layer, from 0.
        layer: usize,
        /// As the tar has it.
        path: String,
    },
    /// Paths that don't fit in memory: of folders the layers leave out, or made longer by links.
    #[error(
        "layer {layer}: the folders that are left out above its entries, and where its links lead, take more than {limit} bytes"
    )]
    Paths {
        /// Layer, from 0.
        layer: usize,
        /// Bytes.
        limit: u64,
    },
}

#[derive(Debug, Clone)]
enum What {
    Node(Meta, Kind),
    /// A name of the file at (layer, index).
    Name(usize, usize),
}

#[derive(Debug, Clone)]
struct Slot {
    layer: usize,
    what: What,
}

impl Slot {
    fn is_dir(&self) -> bool {
        matches!(self.what, What::Node(_, Kind::Dir))
    }
}

#[derive(Default)]
struct Merger {
    /// Bytes that paths may take, and do, which no layer lists: of folders, and longer by links.
    paths_limit: u64,
    paths: u64,
    root: Option<Meta>,
    slots: BTreeMap<Vec<u8>, Slot>,
    files: HashMap<(usize, usize), (Meta, u64)>,
    /// Files the current layer removed: a link behind the whiteout of its target may still mean it.
    removed: HashMap<Vec<u8>, (usize, usize)>,
    /// Whiteouts of the current layer. A second one finds nothing, and would look for it everywhere.
    whiteouts: HashSet<Vec<u8>>,
    parents: HashMap<Vec<u8>, Vec<u8>>,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Merges layers, the lowest first. Takes a while for a large image: not for an asynchronous thread.
pub fn merge(layers: &[Listing]) -> Result<Tree, Error> {
    merge_within(layers, limits::LISTING)
}

fn merge_within(layers: &[Listing], paths_limit: u64) -> Result<Tree, Error> {
    let mut merger = Merger {
        paths_limit,
        ..Merger::default()
    };
    for (layer, listing) in layers.iter().enumerate() {
        merger.removed.clear();
        merger.whiteouts.clear();
        for entry in &listing.entries {
            merger.apply(layer, entry)?;
        }
    }
    Ok(merger.into_tree(layers.len()))
}

impl Merger {
    fn apply(&mut self, layer: usize, entry: &Entry) -> Result<(), Error> {
        let path = self.place(layer, &entry.path)?;
        let (parent, name) = split(&path);
        if name.starts_with(WHITEOUT) && !self.whiteouts.insert(path.clone()) {
            return Ok(());
        }
        if name == OPAQUE {
            let parent = parent.to_vec();
            self.remove_below(&parent, layer);
            return Ok(());
        }
        if name.starts_with(b".wh..wh.") {
            return Ok(()); // AUFS' own bookkeeping
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if hidden.is_empty() {
                return Ok(()); // it names nothing, least of all the folder that it is in
            }
            let hidden = join(parent, hidden);
            self.remove_lower(&hidden, layer);
            return Ok(());
        }
        if path.is_empty() {
            self.root = Some(entry.meta.clone());
            return Ok(());
        }
        let what = match &entry.kind {
            Kind::File { size } => {
                self.files
                    .insert((layer, entry.index), (entry.meta.clone(), *size));
                What::Name(layer, entry.index)
            }
            Kind::Hardlink(target) => self.link(layer, entry, target)?,
            kind => What::Node(entry.meta.clone(), kind.clone()),
        };
        self.put(path, Slot { layer, what })
    }

    fn link(&mut self, layer: usize, entry: &Entry, target: &[u8]) -> Result<What, Error> {
        let target_path = self.place(layer, target)?;
        match self.slots.get(&target_path).map(|slot| &slot.what) {
            // A hard link to a link or device: another of the same kind is as good.
            Some(What::Node(meta, kind)) if *kind != Kind::Dir => {
                return Ok(What::Node(meta.clone(), kind.clone()));
            }
            Some(What::Name(layer, index)) => return Ok(What::Name(*layer, *index)),
            _ => {}
        }
        match self.removed.get(&target_path) {
            Some((layer, index)) => Ok(What::Name(*layer, *index)),
            None => Err(Error::MissingLinkTarget {
                layer,
                path: String::from_utf8_lossy(&entry.path).into_owned(),
                target: String::from_utf8_lossy(target).into_owned(),
            }),
        }
    }

    fn put(&mut self, path: Vec<u8>, slot: Slot) -> Result<(), Error> {
        let keeps_content = slot.is_dir() && self.slots.get(&path).is_some_and(Slot::is_dir);
        if !keeps_content {
            self.remove_all(&path);
        }
        if matches!(slot.what, What::Node(_, Kind::Symlink(_))) {
            self.parents.clear(); // it may redirect paths seen before
        }
        self.make_parents(&path, slot.layer)?;
        self.slots.insert(path, slot);
        Ok(())
    }

    /// Folders a tar leaves out are root's, 0755. Not by recursion: a hostile path is thousands of folders deep.
    fn make_parents(&mut self, path: &[u8], layer: usize) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut parent = split(path).0;
        while !parent.is_empty() && !self.slots.get(parent).is_some_and(Slot::is_dir) {
            missing.push(parent);
            parent = split(parent).0;
        }
        for folder in missing.into_iter().rev() {
            self.take(layer, folder.len() + size_of::<Slot>())?;
            // What isn't a folder there gives way to one.
            self.remove_all(folder);
            let meta = Meta {
                mode: 0o755,
                ..Meta::default()
            };
            let what = What::Node(meta, Kind::Dir);
            self.slots.insert(folder.to_vec(), Slot { layer, what });
        }
        Ok(())
    }

    fn take(&mut self, layer: usize, bytes: usize) -> Result<(), Error> {
        self.paths += bytes as u64;
        match self.paths > self.paths_limit {
            true => Err(Error::Paths {
                layer,
                limit: self.paths_limit,
            }),
            false => Ok(()),
        }
    }

    /// Removes `path` and what is below, if it is of a lower layer than `layer` (below: what is).
    fn remove_lower(&mut self, path: &[u8], layer: usize) {
        self.remove_below(path, layer);
        if self.slots.get(path).is_some_and(|slot| slot.layer < layer)
            && self.children(path).is_empty()
        {
            self.remove_slot(path);
        }
    }

    fn remove_below(&mut self, path: &[u8], layer: usize) {
        for below in self.children(path) {
            if self
                .slots
                .get(&below)
                .is_some_and(|slot| slot.layer < layer)
            {
                // A folder that got new content in this layer stays, or the content would hang in the air.
                let keeps = self
                    .children(&below)
                    .iter()
                    .any(|c| self.slots[c].layer >= layer);
                if !keeps {
                    self.remove_slot(&below);
                }
            }
        }
    }

    fn remove_all(&mut self, path: &[u8]) {
        for below in self.children(path) {
            self.remove_slot(&below);
        }
        self.remove_slot(path);
    }

    fn remove_slot(&mut self, path: &[u8]) {
        match self.slots.remove(path) {
            Some(Slot {
                what: What::Name(layer, index),
                ..
            }) => {
                self.removed.insert(path.to_vec(), (layer, index));
            }
            Some(_) => self.parents.clear(),
            None => {}
        }
    }

    /// All paths below `path`, the deepest first.
    fn children(&self, path: &[u8]) -> Vec<Vec<u8>> {
        if path.is_empty() {
            return self.slots.keys().rev().cloned().collect();
        }
        // '0' follows '/', so this range is just what starts with "path/".
        let (from, to) = ([path, b"/"].concat(), [path, b"0"].concat());
        self.slots
            .range(from..to)
            .rev()
            .map(|(p, _)| p.clone())
            .collect()
    }

    /// Where an entry's path lies: cleaned, with links in its folders followed inside the image.
    fn place(&mut self, layer: usize, raw: &[u8]) -> Result<Vec<u8>, Error> {
        let clean = clean(raw);
        let (parent, name) = split(&clean);
        if parent.is_empty() {
            return Ok(clean);
        }
        let placed = match self.parents.get(parent) {
            Some(known) => join(known, name),
            None => {
                let real = self.follow(parent);
                // Kept, like the entry's own path, until links change: so this bounds work more than memory.
                self.take(layer, real.len().saturating_sub(parent.len()))?;
                let placed = join(&real, name);
                self.parents.insert(parent.to_vec(), real);
                placed
            }
        };
        if placed.len() > limits::PATH {
            return Err(Error::LongPath {
                layer,
                path: String::from_utf8_lossy(raw).into_owned(),
            });
        }
        self.take(layer, placed.len().saturating_sub(raw.len()))?;
        Ok(placed)
    }

    fn follow(&self, path: &[u8]) -> Vec<u8> {
        // Linux' own limit on links in one path (path_resolution(7)).
        const MAX_LINKS: usize = 40;
        let mut rest: Vec<Vec<u8>> = path
            .split(|b| *b == b'/')
            .rev()
            .map(<[u8]>::to_vec)
            .collect();
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done = split(&done).0.to_vec();
                    continue;
                }
                _ => {}
            }
            let next = join(&done, &part);
            match self.slots.get(&next).map(|slot| &slot.what) {
                Some(What::Node(_, Kind::Symlink(target))) if links < MAX_LINKS => {
                    links += 1;
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    rest.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => done = next,
            }
        }
        done
    }

    fn into_tree(self, layers: usize) -> Tree {
        let mut tree = Tree {
            root: self.root.unwrap_or(Meta {
                mode: 0o755,
                ..Meta::default()
            }),
            nodes: Vec::new(),
            files: vec![BTreeMap::new(); layers],
        };
        for (path, slot) in self.slots {
            match slot.what {
                What::Node(meta, kind) => tree.nodes.push(Node { path, meta, kind }),
                What::Name(layer, index) => {
                    let (meta, size) = &self.files[&(layer, index)];
                    let file = tree.files[layer].entry(index).or_insert_with(|| File {
                        names: Vec::new(),
                        meta: meta.clone(),
                        size: *size,
                    });
                    file.names.push(path);
                }
            }
        }
        tree
    }
}

/// Without `.`, empty parts, and leading slashes; `..` goes up, at the root nowhere.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent.is_empty() {
        true => name.to_vec(),
        false => [parent, b"/", name].concat(),
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
pub(crate) mod tests;
