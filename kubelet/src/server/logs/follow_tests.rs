#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::server::access::{AccessError, ContainerRef, PodRef};
use crate::usage::Usage;

struct OneContainer {
    run: Run,
    running: AtomicBool,
}

#[async_trait]
impl PodAccess for OneContainer {
    async fn pods(&self) -> Vec<Pod> {
        Vec::new()
    }

    async fn usage(&self) -> io::Result<Usage> {
        Err(io::Error::other("nobody asks"))
    }

    async fn probes(&self) -> String {
        String::new()
    }

    async fn configz(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    async fn container(&self, _: &ContainerQuery) -> Result<ContainerRef, AccessError> {
        Ok(ContainerRef {
            current: Some(Run {
                running: self.running.load(Ordering::Relaxed),
                ..self.run.clone()
            }),
            ..ContainerRef::default()
        })
    }

    async fn pod(&self, _: &str, _: &str, _: Option<&str>) -> Result<PodRef, AccessError> {
        Err(AccessError::NotReady)
    }
}

fn container(log: &Path) -> Arc<OneContainer> {
    Arc::new(OneContainer {
        run: Run {
            id: "c".into(),
            bundle: PathBuf::new(),
            shim_address: String::new(),
            log: log.to_owned(),
            stdin: None,
            running: true,
        },
        running: AtomicBool::new(true),
    })
}

fn follower(container: &Arc<OneContainer>, options: LogOptions) -> Follower {
    let query = ContainerQuery {
        namespace: "n".into(),
        pod: "p".into(),
        uid: None,
        container: "c".into(),
    };
    Follower::new(container.clone(), query, container.run.clone(), options)
}

async fn all(mut follower: Follower) -> String {
    let mut text = Vec::new();
    while let Some(pieces) = follower.next().await.unwrap() {
        for (_, piece) in pieces {
            text.extend_from_slice(&piece);
        }
    }
    String::from_utf8(text).unwrap()
}

fn append(log: &Path, text: &str) {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn line(text: impl std::fmt::Display) -> String {
    format!("2016-10-06T00:17:01Z stdout F {text}\n")
}

fn numbers(range: std::ops::Range<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn rotated_files_are_part_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    for (name, range) in [
        ("0.log.20060102-150401", 0..5),
        ("0.log.20060102-150402", 5..7),
        ("0.log", 7..9),
    ] {
        append(
            &folder.path().join(name),
            &range.map(line).collect::<String>(),
        );
    }
    let container = container(&log);
    assert_eq!(
        all(follower(&container, LogOptions::default())).await,
        numbers(0..9)
    );
    for tail in 0..12 {
        let options = LogOptions {
            tail: Some(tail.into()),
            ..LogOptions::default()
        };
        let expected = numbers(9u32.saturating_sub(tail)..9);
        assert_eq!(
            all(follower(&container, options)).await,
            expected,
            "tail {tail}"
        );
    }
}

#[tokio::test]
async fn a_log_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let container = container(&folder.path().join("0.log"));
    let mut follower = follower(&container, LogOptions::default());
    assert!(follower.next().await.is_err());
}

#[tokio::test]
async fn following_sees_every_line_through_rotations_and_ends_with_the_container() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    let container = container(&log);
    let options = LogOptions {
        follow: true,
        ..LogOptions::default()
    };
    let reading = tokio::spawn(all(follower(&container, options)));
    let writer = container.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..300u32 {
            let line = line(number);
            let (head, tail) = line.split_at(20);
            append(&log, head);
            append(&log, tail);
            if number % 40 == 39 {
                // Sometimes faster than the reader looks, sometimes slower.
                let rotated = format!("0.log.20060102-{number:06}");
                fs::rename(&log, log.with_file_name(rotated)).unwrap();
                append(&log, "");
                std::thread::sleep(Duration::from_millis(u64::from(number)));
            }
        }
        writer.running.store(false, Ordering::Relaxed);
        // The logger is still at it when the container has ended.
        append(&log, &line(300));
    });
    writing.join().unwrap();
    let text = tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(text, numbers(0..301));
}

#[tokio::test]
async fn a_limit_ends_following() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    append(&log, &(0..9).map(line).collect::<String>());
    let container = container(&log);
    let options = LogOptions {
        follow: true,
        limit: Some(3),
        ..LogOptions::default()
    };
    assert_eq!(all(follower(&container, options)).await, "0\n1");
}

#[tokio::test(start_paused = true)]
async fn what_is_written_after_the_beginning_is_given_though_nobody_has_looked_yet() {
    for before in [None, Some("old")] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        if let Some(before) = before {
            append(&log, &line(before));
        }
        let container = container(&log);
        let options = LogOptions {
            follow: true,
            tail: Some(0),
            ..LogOptions::default()
        };
        let mut follower = follower(&container, options);
        follower.begin().await.unwrap();
        append(&log, &line("new"));
        container.running.store(false, Ordering::Relaxed);
        assert_eq!(all(follower).await, "new\n", "{before:?}");
    }
}
