//! What is in the store, who uses it, and the removal of what nobody does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::claims::{age, changed, claimed, server_time};
use super::error::Error;
use super::files::{Files, listed, remove};
use super::{Store, blocking, full_or, hex_of};
use crate::lease::Lease;

/// An image as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// The references that lead to it, sorted.
    pub names: Vec<String>,
    /// Bytes of its squashfs.
    pub size: u64,
    /// Since it was pulled, or last known to be in use.
    pub unused_for: Duration,
    /// A living node or process has it mounted.
    pub claimed: bool,
}

impl Store {
    /// All images, the one that was used longest ago first. What a dead puller left of one is among them, without a name.
    pub async fn stored(&self) -> Result<Vec<Stored>, Error> {
        let files = self.files.clone();
        blocking(move || stored(&files)).await
    }

    /// What may be removed: what nobody has claimed nor used for `unused_for`, the one that was used longest ago first.
    pub async fn removable(&self, unused_for: Duration) -> Result<Vec<Stored>, Error> {
        let mut all = self.stored().await?;
        all.retain(|image| !image.claimed && image.unused_for >= unused_for);
        Ok(all)
    }

    /// Removes the image `digest` and the references to it, unless somebody pulls it or has claimed it by now: then false.
    /// One that isn't there is removed.
    pub async fn remove_unused(&self, digest: &str) -> Result<bool, Error> {
        let hex = hex_of(digest)?;
        // A puller of the same image waits until it is gone, or is here again.
        let Some(lease) = Lease::try_acquire(&self.files.lease(&hex)).map_err(full_or)? else {
            return Ok(false);
        };
        let (files, digest) = (self.files.clone(), digest.to_owned());
        let removed = blocking(move || remove_unclaimed(&files, &hex, &digest)).await;
        drop(lease);
        removed
    }
}

fn stored(files: &Files) -> Result<Vec<Stored>, Error> {
    let now = server_time(files)?;
    let claimed = claimed(files, now)?;
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, known) in files.references()? {
        names.entry(known.digest).or_default().push(known.reference);
    }
    let mut all = Vec::new();
    for path in listed(&files.root)? {
        let Some(hex) = image_of(&path) else {
            continue;
        };
        // The record is what is touched; without one the image is a dead puller's, or one that is being pulled.
        let record = files.record(&hex);
        let Some(used) = changed(&record)?.map_or_else(|| changed(&path), |t| Ok(Some(t)))? else {
            continue;
        };
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("looking at", &path, e)),
        };
        let digest = format!("sha256:{hex}");
        let mut names = names.remove(&digest).unwrap_or_default();
        names.sort();
        all.push(Stored {
            claimed: claimed.contains(&digest),
            unused_for: age(now, used),
            digest,
            names,
            size,
        });
    }
    all.sort_by(|a, b| {
        let by_age = b.unused_for.cmp(&a.unused_for);
        by_age.then_with(|| a.digest.cmp(&b.digest))
    });
    Ok(all)
}

/// The digest in the name of a squashfs.
fn image_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let hex = name.strip_prefix("sha256-")?.strip_suffix(".sqfs")?;
    Some(hex.to_owned())
}

/// Under the image's lease.
fn remove_unclaimed(files: &Files, hex: &str, digest: &str) -> Result<bool, Error> {
    let record = files.record(hex);
    let look = || {
        let all = server_time(files).and_then(|now| claimed(files, now));
        all.map(|all| all.contains(digest))
    };
    // One that is in use keeps its record at every instant.
    if look()? {
        return Ok(false);
    }
    let aside = files.temp(hex)?;
    let has_record = match fs::rename(&record, &aside.path) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("removing", &record, e)),
    };
    // Who claimed it before the record went is seen now; who does so later finds no image.
    let is_claimed = look();
    if !matches!(is_claimed, Ok(false)) {
        if has_record {
            fs::rename(&aside.path, &record).map_err(|e| Error::io("keeping", &record, e))?;
        }
        return is_claimed.map(|_| false);
    }
    for (path, known) in files.references()? {
        if known.digest == digest {
            remove(&path)?;
        }
    }
    remove(&files.sqfs(hex))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;
    use crate::store::claims::{EXPIRY, end_of};
    use crate::store::files::ImageRecord;
    use crate::{Limits, StoreConfig};

    struct Home {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Home {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Self::open(dir.path()).await;
            Self { dir, store }
        }

        async fn open(dir: &Path) -> Store {
            let config = StoreConfig {
                root: dir.join("store"),
                registries: None,
                logins: Vec::new(),
                policy: None,
                max_bytes: None,
                local_dir: dir.join("local"),
                limits: Limits::default(),
            };
            Store::open(config).await.unwrap()
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join("store").join(name)
        }

        /// An image of 3 bytes, last used `age` ago.
        fn put(&self, digit: char, age: Duration) -> String {
            let hex = digit.to_string().repeat(64);
            let digest = format!("sha256:{hex}");
            let files = &self.store.files;
            fs::write(files.sqfs(&hex), "abc").unwrap();
            let record = ImageRecord {
                digest: digest.clone(),
                config_digest: digest.clone(),
                config: serde_json::json!({}),
                size: 3,
            };
            files
                .write_json(&hex, &files.record(&hex), &record)
                .unwrap();
            backdate(&files.record(&hex), age);
            digest
        }
    }

    fn backdate(path: &Path, age: Duration) {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_one_used_longest_ago_goes_first_and_a_claimed_one_never() {
        let home = Home::new().await;
        let [young, old, oldest] = [
            home.put('a', HOUR),
            home.put('b', HOUR * 2),
            home.put('c', HOUR * 3),
        ];
        let another_node = Home::open(home.dir.path()).await;
        let claims = another_node.claims("n2").await.unwrap();
        assert!(claims.add(&oldest).await.unwrap());
        let free = home.store.removable(HOUR / 2).await.unwrap();
        let digests: Vec<&str> = free.iter().map(|image| image.digest.as_str()).collect();
        assert_eq!(digests, [old.as_str(), young.as_str()]);
        assert!(!home.store.remove_unused(&oldest).await.unwrap());
        assert!(home.store.remove_unused(&old).await.unwrap());
        let left = home.store.stored().await.unwrap();
        let digests: Vec<&str> = left.iter().map(|image| image.digest.as_str()).collect();
        assert_eq!(digests, [young.as_str(), oldest.as_str()]);
        // Nothing half-removed, and the lease is free again.
        assert_eq!(fs::read_dir(home.at("tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(home.at("leases")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_claims_of_a_dead_holder_end_and_those_of_a_restarted_one_go_on() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let claims = home.store.claims("n1").await.unwrap();
        assert!(claims.add(&digest).await.unwrap());
        let again = home.store.claims("n1").await.unwrap();
        assert!(again.held().contains(&digest));
        backdate(&home.at("claims/n1"), EXPIRY * 2);
        again.beat().await.unwrap();
        assert!(!home.store.remove_unused(&digest).await.unwrap());
        backdate(&home.at("claims/n1"), EXPIRY * 2);
        assert!(home.store.remove_unused(&digest).await.unwrap());
        assert!(!home.at("claims/n1").exists());
    }

    #[tokio::test]
    async fn the_claims_of_a_killed_holder_are_ended_by_who_cleans_up_behind_it() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let claims = home.store.claims("n1").await.unwrap();
        assert!(claims.add(&digest).await.unwrap());
        drop(claims);
        assert!(!home.store.remove_unused(&digest).await.unwrap());
        for _ in 0..2 {
            end_of(&home.at(""), "n1").await.unwrap();
        }
        assert!(home.store.remove_unused(&digest).await.unwrap());
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_written_is_held_shown_and_written_later() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let claims = home.store.claims("n1").await.unwrap();
        // A folder in the place of the next list: writing fails, for root, too.
        fs::create_dir_all(home.at("claims/n1.next")).unwrap();
        assert!(claims.add(&digest).await.is_err());
        assert!(claims.beat().await.is_err());
        let unused_for = home.store.stored().await.unwrap()[0].unused_for;
        assert!(unused_for < HOUR, "{unused_for:?}");
        fs::remove_dir(home.at("claims/n1.next")).unwrap();
        claims.beat().await.unwrap();
        assert!(home.store.stored().await.unwrap()[0].claimed);
    }

    #[tokio::test]
    async fn a_holder_lives_though_the_use_of_an_image_cannot_be_shown() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let claims = home.store.claims("n1").await.unwrap();
        assert!(claims.add(&digest).await.unwrap());
        // A record that is a link to itself can't be touched.
        let record = home.store.files.record(&"a".repeat(64));
        fs::remove_file(&record).unwrap();
        std::os::unix::fs::symlink(&record, &record).unwrap();
        backdate(&home.at("claims/n1"), EXPIRY * 2);
        assert!(claims.beat().await.is_err());
        let age = fs::metadata(home.at("claims/n1")).unwrap().modified();
        assert!(age.unwrap().elapsed().unwrap_or_default() < EXPIRY);
    }

    #[tokio::test]
    async fn who_claims_what_was_removed_is_told_and_holds_nothing() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        assert!(home.store.remove_unused(&digest).await.unwrap());
        let claims = home.store.claims("n1").await.unwrap();
        assert!(!claims.add(&digest).await.unwrap());
        assert!(claims.held().is_empty());
    }

    #[tokio::test]
    async fn an_image_that_is_being_pulled_is_left_alone() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let hex = "a".repeat(64);
        let lease = Lease::try_acquire(&home.store.files.lease(&hex)).unwrap();
        assert!(!home.store.remove_unused(&digest).await.unwrap());
        drop(lease);
        assert!(home.store.remove_unused(&digest).await.unwrap());
    }

    #[tokio::test]
    async fn what_a_dead_puller_left_is_found_and_removed() {
        let home = Home::new().await;
        let digest = home.put('a', HOUR);
        let hex = "a".repeat(64);
        fs::remove_file(home.store.files.record(&hex)).unwrap();
        let all = home.store.stored().await.unwrap();
        assert_eq!((all[0].size, all[0].names.len()), (3, 0));
        assert!(home.store.remove_unused(&digest).await.unwrap());
        assert!(!home.store.files.sqfs(&hex).exists());
    }

    #[tokio::test]
    async fn a_store_grown_too_large_loses_what_nobody_uses_and_never_the_newest() {
        let mut home = Home::new().await;
        let [newest, old, oldest, claimed] = [
            home.put('a', HOUR),
            home.put('b', HOUR * 2),
            home.put('c', HOUR * 3),
            home.put('d', HOUR * 4),
        ];
        let claims = home.store.claims("n1").await.unwrap();
        assert!(claims.add(&claimed).await.unwrap());
        let young = home.put('e', Duration::ZERO);
        let left = async |store: &Store| {
            let all = store.stored().await.unwrap();
            all.into_iter()
                .map(|image| image.digest)
                .collect::<BTreeSet<_>>()
        };
        home.store.make_room(&newest).await;
        assert_eq!(left(&home.store).await.len(), 5);
        home.store.config.max_bytes = Some(12);
        home.store.make_room(&newest).await;
        assert!(!left(&home.store).await.contains(&oldest));
        home.store.config.max_bytes = Some(1);
        home.store.make_room(&newest).await;
        let kept = BTreeSet::from([newest, claimed, young]);
        assert_eq!(left(&home.store).await, kept);
        assert!(!kept.contains(&old));
    }

    #[tokio::test]
    async fn a_holder_is_a_name_and_no_path() {
        let home = Home::new().await;
        for name in ["../x", "a/b", "x.next"] {
            let error = home.store.claims(name).await.unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
