//! Images that come from tars and layouts on this machine, as docker and skopeo write them.

use super::*;

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn tars_of_docker_and_oci_are_imported_under_their_names() {
    let registry = Registry::start(None, false);
    // One layer, and so gzip: docker's form has no zstd.
    registry.push(&Image::new([vec![Entry::file("x", "y")]], "{}"), "app:1");
    let home = Home::new("");
    let store = home.store().await;
    for (form, name) in [
        ("docker-archive", "busybox:dev"),
        ("oci-archive", "example.org/a:2"),
    ] {
        let tar = home.dir.path().join(format!("{form}.tar"));
        registry.save("app:1", form, &tar, name);
        let images = store
            .import(&tar.as_path().into(), None, &Quiet)
            .await
            .unwrap();
        let wanted: Reference = name.parse().unwrap();
        assert_eq!(images[0].reference, wanted, "{form}");
        let found = store
            .resolve_and_ensure(&wanted, PullPolicy::Never, None, &Quiet)
            .await
            .unwrap();
        assert_eq!(found.digest, images[0].digest);
    }
    assert_eq!(home.leftovers(), Vec::<String>::new());
    let nothing = home.dir.path().join("registries.yaml");
    assert!(
        store
            .import(&nothing.as_path().into(), None, &Quiet)
            .await
            .is_err()
    );
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn one_of_several_images_is_taken_by_the_tag_that_skopeo_gave_it() {
    let registry = Registry::start(None, false);
    let home = Home::new("");
    let store = home.store().await;
    let layout = home.dir.path().join("layout");
    for version in ["1", "2"] {
        registry.push(
            &Image::new([vec![Entry::file("x", version)]], "{}"),
            "app:1",
        );
        registry.save("app:1", "oci", &layout, version);
    }
    let text = layout.to_str().unwrap();
    let take = async |tag: &str, name: Option<&Reference>| {
        let place = Place::find(&format!("{text}{tag}"));
        store.import(&place, name, &Quiet).await
    };
    let one = take(":2", None).await.unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].reference.to_string(), "localhost/layout:2");
    let name: Reference = "localhost/mine:3".parse().unwrap();
    let named = take(":@1", Some(&name)).await.unwrap();
    assert_eq!(
        (&named[0].reference, &named[0].digest),
        (&name, &one[0].digest)
    );
    let all = take("", None).await.unwrap();
    let names: Vec<String> = all.iter().map(|it| it.reference.to_string()).collect();
    assert_eq!(names, ["localhost/layout:1", "localhost/layout:2"]);
    for (tag, name) in [(":3", None), ("", Some(&name))] {
        let fault = take(tag, name).await.unwrap_err();
        let why = std::error::Error::source(&fault).unwrap().to_string();
        assert!(why.contains("1, 2"), "{tag}: {fault}: {why}");
    }
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_local_tar_has_neither_a_restricted_name_nor_a_path_that_leads_around_its_scope() {
    let registry = Registry::start(None, false);
    registry.push(&Image::new([vec![Entry::file("x", "y")]], "{}"), "app:1");
    let home = Home::new("");
    let store = home.store().await;
    let root = fs::canonicalize(home.dir.path()).unwrap();
    fs::create_dir(root.join("good")).unwrap();
    let (good, bad) = (root.join("good/a.tar"), root.join("b.tar"));
    registry.save("app:1", "docker-archive", &good, "busybox:dev");
    fs::copy(&good, &bad).unwrap();
    std::os::unix::fs::symlink(&bad, root.join("good/link.tar")).unwrap();
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let reject = r#"[{"type":"reject"}]"#;
    let policy = format!(
        r#"{{"default":{reject},"transports":{{"docker-archive":{{"{}":{accept}}},
            "docker":{{"quay.io":{accept}}}}}}}"#,
        root.join("good").display()
    );
    fs::write(root.join("policy.json"), policy).unwrap();
    for (path, name, taken) in [
        (good.clone(), None, false),
        (good.clone(), Some("localhost/busybox:dev"), true),
        (good.clone(), Some("quay.io/busybox:dev"), true),
        (bad, Some("quay.io/b:1"), false),
        (root.join("good/../b.tar"), Some("quay.io/b:1"), false),
        (root.join("good/link.tar"), Some("quay.io/b:1"), false),
    ] {
        let name: Option<Reference> = name.map(|name| name.parse().unwrap());
        let imported = store
            .import(&path.as_path().into(), name.as_ref(), &Quiet)
            .await;
        match imported {
            Ok(_) => assert!(taken, "{path:?} {name:?}"),
            Err(error) => {
                assert!(!taken, "{path:?} {name:?}: {error}");
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            }
        }
    }
    let hub: Reference = "busybox:dev".parse().unwrap();
    assert!(store.find(&hub).await.unwrap().is_none());
}

/// Writes down what a name means, as the store does it.
fn write_record(home: &Home, name: &str, image: &hpk_images::Image) {
    let hex = digest(name.as_bytes()).replace("sha256:", "");
    let record =
        serde_json::json!({"reference": name, "resolved": image.digest, "digest": image.digest});
    let file = home.dir.path().join(format!("store/refs/{hex}.json"));
    fs::write(file, record.to_string()).unwrap();
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_local_image_cannot_have_the_digest_of_another_for_a_name() {
    let registry = Registry::start(None, false);
    registry.push(&Image::new([vec![Entry::file("x", "y")]], "{}"), "app:1");
    let home = Home::new("");
    let store = home.store().await;
    let tar = home.dir.path().join("a.tar");
    registry.save("app:1", "oci-archive", &tar, "busybox:dev");
    let other = format!("docker.io/library/busybox@sha256:{}", "a".repeat(64));
    let name: Reference = other.parse().unwrap();
    let import =
        async |name: Option<&Reference>| store.import(&tar.as_path().into(), name, &Quiet).await;
    let error = import(Some(&name)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let image = import(None).await.unwrap().remove(0);
    let own: Reference = format!("busybox@{}", image.digest).parse().unwrap();
    assert!(import(Some(&own)).await.is_ok());
    assert!(store.find(&own).await.unwrap().is_some());
    // Nor does a record that says so.
    write_record(&home, "docker.io/library/busybox:other", &image);
    let planted: Reference = "busybox:other".parse().unwrap();
    assert!(store.find(&planted).await.unwrap().is_some());
    write_record(&home, &other, &image);
    assert!(store.find(&name).await.unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn a_blob_of_another_size_than_is_promised_is_refused() {
    let home = Home::new("");
    let store = home.store().await;
    let layout = home.dir.path().join("layout");
    let written = Image::new([vec![Entry::file("x", "y")]], "{}").write(&layout, ARCHITECTURE);
    let take = async |descriptor: &str| {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        fs::write(layout.join("index.json"), index).unwrap();
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        store.import(&layout.as_path().into(), None, &Quiet).await
    };
    assert!(take(&written).await.is_ok());
    let digest = written
        .split('"')
        .find(|it| it.starts_with("sha256:"))
        .unwrap();
    let blobs = layout.join("blobs/sha256");
    let manifest = fs::read_to_string(blobs.join(&digest[7..])).unwrap();
    let size = |text: &str| -> usize {
        let (_, rest) = text.split_once(r#""size":"#).unwrap();
        rest.split('}').next().unwrap().parse().unwrap()
    };
    let real = size(&manifest);
    for claimed in [real - 1, real + 1] {
        let lying = manifest.replacen(
            &format!(r#""size":{real}"#),
            &format!(r#""size":{claimed}"#),
            1,
        );
        let descriptor = write_blob(
            &layout,
            lying.as_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        );
        let error = take(&descriptor).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains(&format!("{claimed} bytes")), "{why}");
    }
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn of_an_archive_for_several_machines_this_ones_images_are_taken() {
    let home = Home::new("");
    let store = home.store().await;
    let layout = home.dir.path().join("layout");
    let entry = |architecture: &str| {
        let image = Image::new([vec![Entry::file("x", architecture)]], "{}");
        let written = image.write(&layout, architecture);
        let open = written.trim_end_matches('}');
        format!(
            r#"{open},"annotations":{{"org.opencontainers.image.ref.name":"{architecture}"}}}}"#
        )
    };
    let (other, own) = (entry("s390x"), entry(ARCHITECTURE));
    let take = async |entries: &str| {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
        fs::write(layout.join("index.json"), index).unwrap();
        store.import(&layout.as_path().into(), None, &Quiet).await
    };
    let taken = take(&format!("{other},{own}")).await.unwrap();
    let names: Vec<String> = taken.iter().map(|it| it.reference.to_string()).collect();
    assert_eq!(names, [format!("localhost/layout:{ARCHITECTURE}")]);
    for none in [other.clone(), format!("{other},{other}")] {
        let error = take(&none).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
