//! host-local's folder of leases: a file per address, with the container's id
//! and its interface on two lines; `last_reserved_ip.N` for each range set;
//! and `lock`. The stock plugin may use the folder at the same time.
//!
//! Guarantees: what a killed run has left is an empty file at the most, which
//! counts as free. (The stock plugin takes it for somebody's.)

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::plugin::error::Error;
use crate::plugin::pools::{Pool, RangeSet, next, number};

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub container_id: String,
    pub ifname: String,
}

/// A lease on disk. Without an owner its writer was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: IpAddr,
    pub owner: Option<Owner>,
}

/// The folder, locked against every other run.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

const LAST: &str = "last_reserved_ip.";

impl Store {
    /// Locks the folder, which is made if need be.
    pub fn open(folder: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&folder).map_err(file_error("make", &folder))?;
        Self::lock(folder)
    }

    /// Locks the folder; `None` if nothing was ever leased there.
    pub fn open_existing(folder: PathBuf) -> Result<Option<Self>, Error> {
        match std::fs::metadata(&folder) {
            Ok(_) => Self::lock(folder).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error("read", &folder)(error)),
        }
    }

    fn lock(folder: PathBuf) -> Result<Self, Error> {
        let path = folder.join("lock");
        let open = || {
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        let lock = open().map_err(file_error("lock", &path))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// All leases, by address.
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        let fail = || file_error("list", &self.folder);
        let mut leases = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(fail())? {
            let path = entry.map_err(fail())?.path();
            let address = path.file_name().and_then(|name| name.to_str());
            let Some(Ok(address)) = address.map(str::parse::<IpAddr>) else {
                continue;
            };
            let text = std::fs::read(&path).map_err(file_error("read", &path))?;
            leases.push(Lease {
                address,
                owner: read_owner(&String::from_utf8_lossy(&text)),
            });
        }
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// Leases an address of each set: one of `wanted` if it has one, else the
    /// next after the one that was given last. All or none.
    pub fn allocate(
        &self,
        sets: &[RangeSet],
        wanted: &[IpAddr],
        owner: &Owner,
    ) -> Result<Vec<(IpAddr, Pool)>, Error> {
        let leases = self.leases()?;
        let own = leases
            .iter()
            .find(|lease| lease.owner.as_ref() == Some(owner));
        if let Some(lease) = own {
            return Err(Error::LeasedAlready {
                address: lease.address,
                container_id: owner.container_id.clone(),
                ifname: owner.ifname.clone(),
            });
        }
        let taken: BTreeSet<IpAddr> = leases
            .iter()
            .filter(|lease| lease.owner.is_some())
            .map(|lease| lease.address)
            .collect();
        let chosen = self.choose(sets, wanted, &taken)?;
        for (index, (address, _)) in chosen.iter().enumerate() {
            if let Err(error) = self.write(*address, owner, index) {
                // The first error is the one to tell.
                let _ = self.release(owner);
                return Err(error);
            }
        }
        Ok(chosen)
    }

    fn choose(
        &self,
        sets: &[RangeSet],
        wanted: &[IpAddr],
        taken: &BTreeSet<IpAddr>,
    ) -> Result<Vec<(IpAddr, Pool)>, Error> {
        let mut left: BTreeSet<IpAddr> = wanted.iter().copied().collect();
        let mut chosen = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let asked = left
                .iter()
                .find_map(|address| Some((*address, set.iter().find(|it| it.contains(*address))?)));
            if let Some((address, pool)) = asked {
                if address == pool.gateway || taken.contains(&address) {
                    return Err(Error::AddressTaken(address));
                }
                left.remove(&address);
                chosen.push((address, pool.clone()));
                continue;
            }
            let free = first_free(set, self.last(index)?, taken);
            chosen.push(free.ok_or_else(|| Error::Exhausted {
                ranges: describe(set),
                leased: taken.len(),
            })?);
        }
        match left.first() {
            Some(address) => Err(Error::NoSuchAddress(*address)),
            None => Ok(chosen),
        }
    }

    /// The address of a set that was given last, if that is known.
    fn last(&self, set: usize) -> Result<Option<IpAddr>, Error> {
        let path = self.folder.join(format!("{LAST}{set}"));
        match std::fs::read_to_string(&path) {
            // One that can't be read costs the round robin's order alone.
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    fn write(&self, address: IpAddr, owner: &Owner, set: usize) -> Result<(), Error> {
        let path = self.folder.join(address.to_string());
        let write = || {
            let mut file = File::create(&path)?;
            // In one call, so that the file is empty or whole.
            file.write_all(format!("{}\r\n{}", owner.container_id, owner.ifname).as_bytes())
        };
        write().map_err(file_error("write", &path))?;
        let path = self.folder.join(format!("{LAST}{set}"));
        std::fs::write(&path, address.to_string()).map_err(file_error("write", &path))
    }

    /// Frees the owner's addresses; it may have none.
    pub fn release(&self, owner: &Owner) -> Result<(), Error> {
        self.keep(|lease| lease != owner)
    }

    /// Frees what isn't to be kept, and what killed runs have left. Goes on
    /// after a failure, and returns the first.
    pub fn keep(&self, keep: impl Fn(&Owner) -> bool) -> Result<(), Error> {
        let mut failure = Ok(());
        for lease in self.leases()? {
            if lease.owner.as_ref().is_some_and(&keep) {
                continue;
            }
            let path = self.folder.join(lease.address.to_string());
            if let Err(error) = std::fs::remove_file(&path) {
                failure = failure.and(Err(file_error("remove", &path)(error)));
            }
        }
        failure
    }
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        operation,
        path,
        source,
    }
}

/// Very old leases have no interface; they are that of an empty name.
fn read_owner(text: &str) -> Option<Owner> {
    let mut lines = text.trim().lines();
    let container_id = lines.next()?.trim().to_owned();
    Some(Owner {
        container_id,
        ifname: lines.next().unwrap_or_default().trim().to_owned(),
    })
}

/// The first free address after `last`, going round all the set's pools.
fn first_free(
    set: &RangeSet,
    last: Option<IpAddr>,
    taken: &BTreeSet<IpAddr>,
) -> Option<(IpAddr, Pool)> {
    let start = last.and_then(|last| Some((last, set.iter().position(|it| it.contains(last))?)));
    let (home, from) = match start {
        Some((last, index)) if last != set[index].last => (index, next(last)),
        Some((_, index)) => ((index + 1) % set.len(), set[(index + 1) % set.len()].first),
        None => (0, set.first()?.first),
    };
    let rest_of_home = std::iter::once((from, &set[home]));
    let others = (1..=set.len()).map(|step| &set[(home + step) % set.len()]);
    rest_of_home
        .chain(others.map(|pool| (pool.first, pool)))
        .find_map(|(from, pool)| Some((free_in(pool, from, taken)?, pool.clone())))
}

/// Passes over what is taken, which is few, and not over what is free.
fn free_in(pool: &Pool, from: IpAddr, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let mut candidate = from;
    let mut taken = taken.range(from..=pool.last).peekable();
    loop {
        let is_taken = taken.next_if(|address| **address == candidate).is_some();
        if !is_taken && candidate != pool.gateway {
            return Some(candidate);
        }
        if number(candidate) >= number(pool.last) {
            return None;
        }
        candidate = next(candidate);
    }
}

pub fn describe(set: &RangeSet) -> String {
    let ranges: Vec<String> = set
        .iter()
        .map(|pool| format!("{}-{}", pool.first, pool.last))
        .collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests;
