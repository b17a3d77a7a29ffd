use std::fs;
use std::time::Duration;

use super::*;

struct Site {
    _root: tempfile::TempDir,
    places: Places,
}

impl Site {
    fn new(dev: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            named: None,
            dev,
            programs: root.path().join("bin"),
            images: root.path().join("images"),
        };
        fs::create_dir(&places.programs).unwrap();
        fs::create_dir(&places.images).unwrap();
        Self {
            _root: root,
            places,
        }
    }

    fn put(&self, path: &Path, hour: u64) -> PathBuf {
        if !path.is_dir() {
            fs::write(path, "an image").unwrap();
        }
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hour);
        fs::File::open(path).unwrap().set_modified(at).unwrap();
        path.to_owned()
    }

    fn beside(&self, hour: u64) -> PathBuf {
        self.put(&self.places.programs.join(SIF), hour)
    }

    fn in_home(&self, hour: u64) -> PathBuf {
        self.put(&self.places.images.join(SIF), hour)
    }

    /// In docker's form, as a folder, which is read like a tar.
    fn tar(&self, file: &str, image: &str, hour: u64) -> PathBuf {
        let path = self.places.images.join(file);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), "{}").unwrap();
        let list =
            serde_json::json!([{"Config": "config.json", "RepoTags": [image], "Layers": []}]);
        fs::write(path.join("manifest.json"), list.to_string()).unwrap();
        self.put(&path, hour)
    }

    fn pin(&self, text: &str) {
        fs::write(self.places.programs.join(PIN), text).unwrap();
    }

    /// What was found, as a path or a reference.
    async fn found(&self) -> String {
        match self.places.find().await.unwrap() {
            Found::File(path) => path.display().to_string(),
            Found::Tar(tar) => tar.path.display().to_string(),
            Found::Registry { reference, .. } => reference.to_string(),
        }
    }

    async fn refused(&self) -> String {
        format!("{:#}", self.places.find().await.unwrap_err())
    }
}

fn is(path: &Path) -> String {
    path.display().to_string()
}

fn pinned() -> String {
    format!("registry.test/u/hpk-bubble:0.1.0@sha256:{}", "a".repeat(64))
}

#[tokio::test]
async fn a_file_beside_the_programs_goes_before_the_homes_and_both_before_the_pinned_one() {
    let site = Site::new(false);
    site.pin(&format!("{}\n", pinned()));
    assert_eq!(site.found().await, pinned());
    let in_home = site.in_home(2);
    assert_eq!(site.found().await, is(&in_home));
    let beside = site.beside(1);
    assert_eq!(site.found().await, is(&beside));
}

/// Each tarball has a file by the SIF's name; a pinned reference stays where a later one has none.
#[tokio::test]
async fn of_tarballs_unpacked_over_each_other_the_last_one_counts() {
    let site = Site::new(false);
    let with_image = || site.beside(1);
    let online = || {
        site.pin(&pinned());
        fs::write(site.places.programs.join(SIF), "").unwrap();
    };
    for _ in 0..2 {
        let sif = with_image();
        assert_eq!(site.found().await, is(&sif));
        online();
        assert_eq!(site.found().await, pinned());
    }
    // Nor is the empty one the newest of a developer's.
    let site = Site::new(true);
    fs::write(site.places.programs.join(SIF), "").unwrap();
    let tar = site.tar("hpk-bubble.tar", "localhost/hpk-bubble:1", 1);
    assert_eq!(site.found().await, is(&tar));
}

#[tokio::test]
async fn what_the_user_names_goes_before_all() {
    let mut site = Site::new(true);
    site.beside(1);
    site.tar("hpk-bubble.tar", "localhost/hpk-bubble:1", 2);
    site.places.named = Some(format!("docker://{}", pinned()).into());
    assert_eq!(site.found().await, pinned());
    let mine = site.put(&site.places.images.join("mine.sqfs"), 0);
    site.places.named = Some(mine.clone().into());
    assert_eq!(site.found().await, is(&mine));
    site.places.named = Some("/nowhere/x.sif".into());
    let refused = site.refused().await;
    assert!(
        refused.contains("HPK_IMAGE=/nowhere/x.sif does not exist"),
        "{refused}"
    );
    fs::write(&mine, "").unwrap();
    site.places.named = Some(mine.into());
    let refused = site.refused().await;
    assert!(refused.contains("is empty"), "{refused}");
}

#[tokio::test]
async fn of_a_developers_images_the_newest_counts() {
    let site = Site::new(true);
    site.beside(1);
    site.tar("old.tar", "quay.io/me/hpk-bubble:1", 2);
    let new = site.tar("new.tar", "localhost/hpk-bubble:1", 3);
    site.tar("pause.tar", "localhost/hpk-pause:1", 4);
    site.tar("half.tar.new", "localhost/hpk-bubble:1", 5);
    assert_eq!(site.found().await, is(&new));
    let in_home = site.in_home(6);
    assert_eq!(site.found().await, is(&in_home));
}

#[tokio::test]
async fn a_tar_without_names_is_known_by_its_own() {
    let site = Site::new(true);
    let bare = site.tar("hpk-bubble-mine.tar", "", 1);
    site.tar("other.tar", "", 2);
    assert_eq!(site.found().await, is(&bare));
}

#[tokio::test]
async fn where_there_is_none_all_places_are_named() {
    let mut site = Site::new(false);
    site.tar("hpk-bubble.tar", "localhost/hpk-bubble:1", 1);
    let refused = site.refused().await;
    for word in [
        "HPK_IMAGE",
        "bin/hpk-bubble.sif",
        "images/hpk-bubble.sif",
        "HPK_DEV=1",
        PIN,
        "make dist",
    ] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    site.places.dev = true;
    assert!(site.found().await.ends_with("hpk-bubble.tar"));
}

#[tokio::test]
async fn only_a_digest_pins_an_image() {
    let site = Site::new(false);
    site.pin("registry.test/u/hpk-bubble:0.1.0");
    let refused = site.refused().await;
    assert!(refused.contains("without a digest"), "{refused}");
    site.pin("no reference\n");
    assert!(site.refused().await.contains(PIN));
}
