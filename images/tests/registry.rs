//! Pulls from a real registry (docker-registry on loopback, filled by skopeo), and mounts by a real squashfuse.

#![allow(clippy::unwrap_used)]

#[path = "registry/faults.rs"]
mod faults;
#[path = "registry/fixtures.rs"]
mod fixtures;
#[path = "registry/local.rs"]
mod local;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use fixtures::{
    ARCHITECTURE, Entry, Image, Registry, Signer, Tls, digest, files_below, write_blob,
};
use hpk_images::source::place::Place;
use hpk_images::{
    Credentials, ErrorKind, Event, Limits, Mounter, Progress, PullPolicy, Quiet, Reference, Store,
    StoreConfig,
};

/// A store in a folder of its own.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(registries: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("registries.yaml"), registries).unwrap();
        Self { dir }
    }

    fn config(&self) -> StoreConfig {
        let at = |name: &str| self.dir.path().join(name);
        StoreConfig {
            root: at("store"),
            registries: Some(at("registries.yaml")),
            logins: vec![at("auth.json")],
            policy: Some(at("policy.json")),
            max_bytes: None,
            local_dir: at("local"),
            limits: Limits::default(),
        }
    }

    async fn store(&self) -> Store {
        Store::open(self.config()).await.unwrap()
    }

    /// What is half-made: nothing may be, after a pull.
    fn leftovers(&self) -> Vec<String> {
        let below = |name: &str| files_below(&self.dir.path().join(name));
        [below("local"), below("store/tmp"), below("store/leases")].concat()
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<Event>>);

impl Progress for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

fn two_layers() -> Image {
    let low = vec![
        Entry::dir("etc", 0o755),
        Entry::file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nweb:x:7:8::/www:/bin/sh\n",
        ),
        Entry::file("etc/gone", "x"),
        Entry::file("data", "low").xattr("user.mark", b"a\nb"),
        Entry::link("second-name", "data"),
        Entry::dir("opaque", 0o755),
        Entry::file("opaque/old", "x"),
    ];
    let up = vec![
        Entry::file("etc/.wh.gone", ""),
        Entry::file("data", "up"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "x"),
        Entry::symlink("way", "etc/passwd"),
    ];
    Image::new(
        [low, up],
        r#"{"Entrypoint":["/run"],"Env":["A=1"],"User":"web"}"#,
    )
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools, squashfuse, /dev/fuse"]
async fn an_image_is_pulled_by_tag_and_digest_merged_and_mounted() {
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "team/app:1");
    let home = Home::new("");
    let store = home.store().await;
    let tag: Reference = registry.name("team/app:1").parse().unwrap();

    let image = store
        .resolve_and_ensure(&tag, PullPolicy::IfNotPresent, None, &Quiet)
        .await
        .unwrap();
    assert_eq!(home.leftovers(), Vec::<String>::new());
    let by_digest = tag.with_digest(&image.digest);
    let again = store
        .resolve_and_ensure(&by_digest, PullPolicy::Never, None, &Quiet)
        .await
        .unwrap();
    assert_eq!(again.digest, image.digest);
    let names: Vec<String> = store
        .list()
        .await
        .unwrap()
        .iter()
        .map(|i| i.reference.to_string())
        .collect();
    assert_eq!(names, [tag.to_string()]);

    let mounts = tempfile::tempdir().unwrap();
    let mounter = Mounter::new(mounts.path());
    let root = mounter.ensure(&image).await.unwrap();
    assert_eq!(
        Mounter::new(mounts.path()).ensure(&image).await.unwrap(),
        root
    );
    assert_eq!(mounter.mounted().await.unwrap(), [image.digest.as_str()]);
    let have: BTreeSet<String> = files_below(&root).into_iter().collect();
    let want = ["data", "etc/passwd", "opaque/new", "second-name", "way"];
    assert_eq!(have, want.iter().map(|w| (*w).to_owned()).collect());
    assert_eq!(fs::read_to_string(root.join("data")).unwrap(), "up");
    assert_eq!(fs::read_to_string(root.join("second-name")).unwrap(), "low");
    assert_eq!(
        fixtures::xattr(&root.join("second-name"), "user.mark"),
        b"a\nb"
    );
    let user = hpk_images::user::resolve(&root, "web").unwrap();
    assert_eq!((user.uid, user.gid), (7, 8));
    mounter.release(&image.digest).await.unwrap();
    assert_eq!(mounter.mounted().await.unwrap(), Vec::<String>::new());
    assert_eq!(files_below(mounts.path()), Vec::<String>::new());

    store.remove(&image.digest).await.unwrap();
    assert_eq!(
        files_below(&home.dir.path().join("store")),
        Vec::<String>::new()
    );
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_moved_tag_is_followed_only_with_always() {
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "app:1");
    let home = Home::new("");
    let store = home.store().await;
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let pull = async |policy| {
        store
            .resolve_and_ensure(&tag, policy, None, &Quiet)
            .await
            .unwrap()
            .digest
    };
    let first = pull(PullPolicy::Always).await;
    registry.push(&Image::new([vec![Entry::file("x", "new")]], "{}"), "app:1");
    assert_eq!(pull(PullPolicy::IfNotPresent).await, first);
    let second = pull(PullPolicy::Always).await;
    assert_ne!(second, first);
    assert_eq!(pull(PullPolicy::Never).await, second);
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn the_machines_image_is_chosen_from_an_index() {
    let registry = Registry::start(None, false);
    let other = Image::new([vec![Entry::file("wrong", "")]], "{}");
    registry.push_index(
        &[
            ("s390x", &other),
            ("amd64", &two_layers()),
            ("arm64", &two_layers()),
        ],
        "multi:1",
    );
    let home = Home::new("");
    let store = home.store().await;
    let tag: Reference = registry.name("multi:1").parse().unwrap();
    let image = store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap();
    assert_eq!(
        image
            .config
            .config()
            .as_ref()
            .unwrap()
            .entrypoint()
            .clone()
            .unwrap(),
        ["/run"]
    );
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn an_image_for_another_machine_is_refused_without_an_index_too() {
    let registry = Registry::start(None, false);
    registry.push_for("s390x", &two_layers(), "app:1");
    let home = Home::new("");
    let name: Reference = registry.name("app:1").parse().unwrap();
    let store = home.store().await;
    let pulled = store.resolve_and_ensure(&name, PullPolicy::Always, None, &Quiet);
    let error = pulled.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn two_nodes_pulling_at_once_download_once() {
    let registry = Registry::start(None, false);
    registry.push(
        &Image::new(
            [vec![Entry::file(
                "big",
                &"0123456789abcdef".repeat(1 << 20),
            )]],
            "{}",
        ),
        "big:1",
    );
    let home = Home::new("");
    let (one, mut two) = (home.config(), home.config());
    two.local_dir = home.dir.path().join("local2");
    let tag: Reference = registry.name("big:1").parse().unwrap();
    let pull = async |config| {
        let (store, log) = (Store::open(config).await.unwrap(), Log::default());
        let image = store
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &log)
            .await
            .unwrap();
        let events = log.0.into_inner().unwrap();
        (
            image.digest,
            events.iter().any(|e| matches!(e, Event::Downloaded { .. })),
        )
    };
    let ((digest_one, one), (digest_two, two)) = tokio::join!(pull(one), pull(two));
    assert_eq!(digest_one, digest_two);
    assert!(one != two, "exactly one of them downloads");
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_tampered_layer_is_refused_and_leaves_nothing() {
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "app:1");
    registry.tamper_with_largest_blob();
    let home = Home::new("");
    let store = home.store().await;
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let error = store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert!(store.find(&tag).await.unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn an_image_that_does_not_exist_is_named_with_the_place_asked() {
    let registry = Registry::start(None, false);
    let home = Home::new("");
    let store = home.store().await;
    let tag: Reference = registry.name("no/such:1").parse().unwrap();
    let error = store
        .resolve_and_ensure(&tag, PullPolicy::IfNotPresent, None, &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("no/such:1") && text.contains(&registry.host()),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn mirrors_stand_in_and_a_dead_one_is_passed_over() {
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "hub/busybox:1");
    let home = Home::new(&format!(
        "mirrors:\n  docker.io:\n    endpoint: [\"http://127.0.0.1:1\", \"http://{}\"]\n    \
         rewrite: {{\"^library/(.*)\": \"hub/$1\"}}\n",
        registry.host()
    ));
    let store = home.store().await;
    let tag: Reference = "busybox:1".parse().unwrap();
    let image = store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap();
    assert_eq!(image.reference.to_string(), "docker.io/library/busybox:1");
}

/// Those of user `u`, whose password at a private registry is `p`.
fn basic(password: &str) -> Credentials {
    Credentials::Basic {
        username: "u".to_owned(),
        password: password.to_owned(),
    }
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_pull_secret_is_not_shown_to_a_mirror_of_another_host() {
    // The mirror wants the very password that the secret holds: if it lets us in, it was shown.
    let mirror = Registry::start(None, true);
    mirror.push(&two_layers(), "app:1");
    // At the registry itself nobody listens.
    let tag: Reference = "127.0.0.1:1/app:1".parse().unwrap();
    let host = mirror.host();
    let mirrors = format!("mirrors: {{\"127.0.0.1:1\": {{endpoint: [\"http://{host}\"]}}}}\n");
    let home = Home::new(&mirrors);
    let error = home
        .store()
        .await
        .resolve_and_ensure(&tag, PullPolicy::Always, Some(basic("p")), &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let refused = format!("{host} refuses");
    assert!(
        error.to_string().contains(&refused) && error.to_string().contains("anonymous callers"),
        "{error}"
    );
    // What the file has for the mirror's own host is, whatever the secret says.
    let auth = format!("configs: {{\"{host}\": {{auth: {{username: u, password: p}}}}}}");
    let home = Home::new(&(mirrors + &auth));
    home.store()
        .await
        .resolve_and_ensure(&tag, PullPolicy::Always, Some(basic("wrong")), &Quiet)
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn an_image_beyond_its_limits_is_refused_and_leaves_nothing() {
    let registry = Registry::start(None, false);
    let zeros = "\0".repeat(64 << 20);
    let layers = [
        vec![Entry::file("small", "x")],
        vec![Entry::file("zeros", &zeros)],
    ];
    registry.push(&Image::new(layers, "{}"), "bomb:1");
    let tag: Reference = registry.name("bomb:1").parse().unwrap();
    let home = Home::new("");
    let store = Store::open(StoreConfig {
        limits: Limits { unpacked: 32 << 20 },
        ..home.config()
    });
    let store = store.await.unwrap();
    let error = store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert!(store.find(&tag).await.unwrap().is_none());
    // With the usual limits it is an image like any other.
    let store = home.store().await;
    store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_private_registry_wants_credentials() {
    let registry = Registry::start(None, true);
    registry.push(&two_layers(), "app:1");
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let home = Home::new("");
    let store = home.store().await;
    for wrong in [None, Some(basic("wrong-sekrit"))] {
        let error = store
            .resolve_and_ensure(&tag, PullPolicy::Always, wrong, &Quiet)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert!(!format!("{error} {error:?}").contains("sekrit"));
    }
    store
        .resolve_and_ensure(&tag, PullPolicy::Always, Some(basic("p")), &Quiet)
        .await
        .unwrap();

    let configured = Home::new(&format!(
        "configs: {{\"{}\": {{auth: {{username: u, password: p}}}}}}",
        registry.host()
    ));
    let store = configured.store().await;
    store
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn the_users_own_logins_are_tried_one_after_the_other() {
    let registry = Registry::start(None, true);
    registry.push(&two_layers(), "team/app:1");
    let tag: Reference = registry.name("team/app:1").parse().unwrap();
    let home = Home::new("");
    let store = home.store().await;
    let login = |scope: &str, password: &str| {
        let host = registry.host();
        format!(r#""{host}{scope}":{{"username":"u","password":"{password}"}}"#)
    };
    let pull = async |logins: &[String]| {
        let json = format!(r#"{{"auths":{{{}}}}}"#, logins.join(","));
        fs::write(home.dir.path().join("auth.json"), json).unwrap();
        store
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await
    };
    let error = pull(&[login("", "wrong-sekrit")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let said = error.to_string();
    assert!(
        said.contains("user \"u\"") && !said.contains("sekrit"),
        "{said}"
    );
    pull(&[login("/team", "wrong"), login("", "p")])
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn registries_yaml_goes_before_the_users_own_logins() {
    let registry = Registry::start(None, true);
    registry.push(&two_layers(), "app:1");
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let host = registry.host();
    for (configured, own, refused) in [
        ("p", "wrong", None),
        ("wrong", "p", None),
        ("wrong", "wrong", Some("user \"site\"")),
    ] {
        let user = if configured == "p" { "u" } else { "site" };
        let home = Home::new(&format!(
            "configs: {{\"{host}\": {{auth: {{username: {user}, password: {configured}}}}}}}"
        ));
        let json = format!(r#"{{"auths":{{"{host}":{{"username":"u","password":"{own}"}}}}}}"#);
        fs::write(home.dir.path().join("auth.json"), json).unwrap();
        let pulled = home
            .store()
            .await
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await;
        let said = pulled.err().map(|error| error.to_string());
        match refused {
            None => assert_eq!(said, None, "{configured} {own}"),
            Some(user) => assert!(said.clone().unwrap().contains(user), "{said:?}"),
        }
    }
}

#[tokio::test]
async fn a_name_the_policy_rejects_is_judged_before_its_registry_is_asked() {
    let home = Home::new("");
    let policy = r#"{"default":[{"type":"reject"}]}"#;
    fs::write(home.dir.path().join("policy.json"), policy).unwrap();
    // Nobody listens there.
    let tag: Reference = "127.0.0.1:1/app:1".parse().unwrap();
    let error = home
        .store()
        .await
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

/// A policy that wants what `item` says of all images of `registry`, and no others.
fn policy_of(registry: &Registry, item: &str) -> String {
    let host = registry.host();
    format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{host}":[{item}]}}}}}}"#
    )
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn what_the_policy_does_not_let_in_is_refused_and_leaves_nothing() {
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "app:1");
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let home = Home::new("");
    let store = home.store().await;
    let pull = async |policy: &str| {
        fs::write(home.dir.path().join("policy.json"), policy).unwrap();
        store
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await
    };
    for (policy, kind) in [
        (
            policy_of(&registry, r#"{"type":"reject"}"#),
            ErrorKind::Refused,
        ),
        (
            r#"{"default":[{"type":"reject"}]}"#.to_owned(),
            ErrorKind::Refused,
        ),
        (
            policy_of(&registry, r#"{"type":"signedBy","keyPath":"/k"}"#),
            ErrorKind::Refused,
        ),
        ("{".to_owned(), ErrorKind::Config),
    ] {
        let error = pull(&policy).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{policy}: {error}");
    }
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert!(store.find(&tag).await.unwrap().is_none());
    pull(&policy_of(
        &registry,
        r#"{"type":"insecureAcceptAnything"}"#,
    ))
    .await
    .unwrap();
}

/// Debian's skopeo, which might judge each case first, has sigstore taken out.
#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn only_a_signature_by_the_key_for_this_image_and_name_lets_it_in() {
    let registry = Registry::start(None, false);
    let (ours, theirs) = (Signer::make(), Signer::make());
    registry.push(&two_layers(), "unsigned:1");
    for (name, signer, signed_name) in [
        ("signed:1", &ours, "signed:1"),
        ("by-another:1", &theirs, "by-another:1"),
        ("renamed:1", &ours, "other:1"),
        ("bare:1", &ours, "bare"),
    ] {
        registry.push(&Image::new([vec![Entry::file("name", name)]], "{}"), name);
        registry.sign(name, signer, &registry.name(signed_name));
    }
    // Another image's signature, moved to this one.
    registry.push(
        &Image::new([vec![Entry::file("name", "evil")]], "{}"),
        "moved:1",
    );
    registry.move_signature("signed:1", "moved:1");
    let key = ours.key_file().display().to_string();
    let exact = format!(r#"{{"type":"sigstoreSigned","keyPath":"{key}"}}"#);
    let loose = format!(
        r#"{{"type":"sigstoreSigned","keyPath":"{key}","signedIdentity":{{"type":"matchRepository"}}}}"#
    );
    let home = Home::new("");
    let store = home.store().await;
    let policy_file = home.dir.path().join("policy.json");
    for (name, item, good) in [
        ("signed:1", &exact, true),
        ("unsigned:1", &exact, false),
        ("by-another:1", &exact, false),
        ("renamed:1", &exact, false),
        ("renamed:1", &loose, false),
        ("bare:1", &exact, false),
        ("bare:1", &loose, true),
        ("moved:1", &exact, false),
        ("moved:1", &loose, false),
    ] {
        fs::write(&policy_file, policy_of(&registry, item)).unwrap();
        let tag: Reference = registry.name(name).parse().unwrap();
        let pulled = store
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await;
        match pulled {
            Ok(_) => assert!(good, "{name} {item} was taken"),
            Err(error) => {
                assert!(
                    !good,
                    "{name} {item}: {error} {:?}",
                    std::error::Error::source(&error)
                );
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_signature_that_a_mirror_lacks_is_got_from_the_registry() {
    let (registry, mirror) = (Registry::start(None, false), Registry::start(None, false));
    let signer = Signer::make();
    for place in [&registry, &mirror] {
        place.push(&two_layers(), "signed:1");
    }
    let yaml = format!(
        "mirrors: {{\"{}\": {{endpoint: [\"http://{}\"]}}}}\n",
        registry.host(),
        mirror.host()
    );
    let home = Home::new(&yaml);
    let item = format!(
        r#"{{"type":"sigstoreSigned","keyPath":"{}"}}"#,
        signer.key_file().display()
    );
    let policy = home.dir.path().join("policy.json");
    fs::write(policy, policy_of(&registry, &item)).unwrap();
    let store = home.store().await;
    let tag: Reference = registry.name("signed:1").parse().unwrap();
    let pull = || store.resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet);
    // Neither has one.
    let error = pull().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    registry.sign("signed:1", &signer, &registry.name("signed:1"));
    pull().await.unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn an_indexs_signature_at_a_mirror_does_without_the_registry() {
    let (mirror, signer) = (Registry::start(None, false), Signer::make());
    let image = two_layers();
    mirror.push_index(&[(ARCHITECTURE, &image)], "app:1");
    // At the registry itself nobody listens.
    let name = "127.0.0.1:1/app:1";
    mirror.sign("app:1", &signer, name);
    let host = mirror.host();
    let home = Home::new(&format!(
        "mirrors: {{\"127.0.0.1:1\": {{endpoint: [\"http://{host}\"]}}}}\n"
    ));
    let policy = format!(
        r#"{{"default":[{{"type":"sigstoreSigned","keyPath":"{}"}}]}}"#,
        signer.key_file().display()
    );
    fs::write(home.dir.path().join("policy.json"), policy).unwrap();
    let tag: Reference = name.parse().unwrap();
    let store = home.store().await;
    let pull = store.resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet);
    pull.await.unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_sites_own_certificate_authority_is_taken_from_registries_yaml() {
    let tls = Tls::make();
    let registry = Registry::start(Some(&tls), false);
    registry.push(&two_layers(), "app:1");
    let tag: Reference = format!("registry.localhost:{}/app:1", registry.port())
        .parse()
        .unwrap();
    let mirror = |config: &str| {
        let own = format!("https://{}", registry.host());
        format!(
            "mirrors: {{\"*\": {{endpoint: [\"{own}\"]}}}}\nconfigs: {{\"{}\": {{tls: {{{config}}}}}}}",
            registry.host()
        )
    };
    let ca = format!("ca_file: \"{}\"", tls.ca_file().display());
    for (config, works) in [
        ("", false),
        (ca.as_str(), true),
        ("insecure_skip_verify: true", true),
    ] {
        let home = Home::new(&mirror(config));
        let pulled = home
            .store()
            .await
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await;
        assert_eq!(pulled.is_ok(), works, "{config}: {:?}", pulled.err());
    }
}

#[tokio::test]
#[ignore = "needs root, docker-registry, skopeo, squashfs-tools"]
async fn a_full_disk_is_named_and_left_clean() {
    let registry = Registry::start(None, false);
    let mut state = 88_172_645_463_325_252u64;
    let noise: String = (0..3 << 20)
        .map(|_| {
            // xorshift64: what doesn't compress
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b' ' + (state >> 32) as u8 % 95)
        })
        .collect();
    registry.push(
        &Image::new([vec![Entry::file("noise", &noise)]], "{}"),
        "noise:1",
    );
    let tag: Reference = registry.name("noise:1").parse().unwrap();
    for (store_kib, local_kib, full) in [
        (512, 65_536, "store"),
        (65_536, 3_000, "local"),
        (65_536, 64, "local"),
    ] {
        let home = Home::new("");
        let small = |name: &str, kib: u32| fixtures::Tmpfs::mount(&home.dir.path().join(name), kib);
        let _mounts = [small("store", store_kib), small("local", local_kib)];
        let store = home.store().await;
        let error = store
            .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let dir = home.dir.path().join(full);
        assert!(
            error.to_string().contains(&dir.display().to_string()),
            "{error}"
        );
        assert_eq!(home.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn nothing_in_the_store_is_for_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let registry = Registry::start(None, false);
    registry.push(&two_layers(), "app:1");
    let home = Home::new("");
    let tag: Reference = registry.name("app:1").parse().unwrap();
    home.store()
        .await
        .resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet)
        .await
        .unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = home.dir.path().join("store");
    assert_eq!(mode(&store), 0o700);
    for file in files_below(&store) {
        assert_eq!(mode(&store.join(&file)), 0o600, "{file}");
    }
}
