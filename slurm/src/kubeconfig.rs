//! Kubeconfig files: a component's own, and the user's with a context for each cluster.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::files;

/// Who talks to which API server, with PEM texts.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://HOST:PORT`
    pub server: String,
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// The name of a cluster's entries in the user's kubeconfig.
pub fn context_name(id: &str) -> String {
    format!("hpk-{id}")
}

/// A kubeconfig with one context, as text.
pub fn single(name: &str, access: &Access) -> Result<String> {
    let mut config = empty();
    put(&mut config, name, access);
    render(&config)
}

fn empty() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [], "users": [], "contexts": [], "current-context": ""
    })
}

fn render(config: &Value) -> Result<String> {
    serde_yaml_ng::to_string(config).context("writing a kubeconfig as YAML")
}

/// Adds or replaces the entries of `name`, and makes it current.
fn put(config: &mut Value, name: &str, access: &Access) {
    drop_entries(config, name);
    let entries = [
        (
            "clusters",
            json!({"name": name, "cluster": {
                "server": access.server,
                "certificate-authority-data": STANDARD.encode(&access.authority),
            }}),
        ),
        (
            "users",
            json!({"name": name, "user": {
                "client-certificate-data": STANDARD.encode(&access.certificate),
                "client-key-data": STANDARD.encode(&access.key),
            }}),
        ),
        (
            "contexts",
            json!({"name": name, "context": {"cluster": name, "user": name}}),
        ),
    ];
    for (list, entry) in entries {
        match config[list].as_array_mut() {
            Some(items) => items.push(entry),
            None => config[list] = json!([entry]),
        }
    }
    config["current-context"] = name.into();
}

fn drop_entries(config: &mut Value, name: &str) {
    for list in ["clusters", "users", "contexts"] {
        if let Some(items) = config[list].as_array_mut() {
            items.retain(|item| item["name"] != name);
        }
    }
}

/// Removes the entries of `name`; the newest context left becomes current.
fn take(config: &mut Value, name: &str) {
    drop_entries(config, name);
    if config["current-context"] == name {
        let newest = config["contexts"]
            .as_array()
            .and_then(|contexts| contexts.last())
            .and_then(|context| context["name"].as_str())
            .unwrap_or_default()
            .to_owned();
        config["current-context"] = newest.into();
    }
}

/// Adds a cluster to the user's kubeconfig, as its current context.
pub fn register(hpk_home: &Path, id: &str, access: &Access) -> Result<()> {
    edit(hpk_home, |config| put(config, &context_name(id), access))?;
    // The name that earlier HPKs used.
    let alias = hpk_home.join("kubernetes");
    files::make_private_dir(&alias)?;
    let alias = alias.join("admin.conf");
    match std::os::unix::fs::symlink("../kubeconfig", &alias) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("linking {}", alias.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a cluster from the user's kubeconfig; fine if it isn't there.
pub fn unregister(hpk_home: &Path, id: &str) -> Result<()> {
    edit(hpk_home, |config| take(config, &context_name(id)))
}

fn edit(hpk_home: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = hpk_home.join("kubeconfig");
    let _lock = Lock::take(hpk_home.join("kubeconfig.lock"))?;
    let mut config = match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => empty(),
        Ok(text) => serde_yaml_ng::from_str(&text)
            .with_context(|| format!("{} is no kubeconfig", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => empty(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    change(&mut config);
    files::write_private(&path, render(&config)?.as_bytes())
}

/// A file that only one can create, on any file system; one left by the dead is taken over.
#[derive(Debug)]
struct Lock(PathBuf);

impl Lock {
    const STALE: Duration = Duration::from_secs(10);

    fn take(path: PathBuf) -> Result<Self> {
        // Each look waits 50 ms: three times as long as a lock can be fresh.
        for _ in 0..600 {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if Self::is_stale(&path) {
                        let _ = std::fs::remove_file(&path);
                    } else {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
        bail!(
            "{} has been there for 30 s: remove it if no job is starting",
            path.display()
        )
    }

    fn is_stale(path: &Path) -> bool {
        let modified = path.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| {
            SystemTime::now()
                .duration_since(modified)
                .is_ok_and(|age| age > Self::STALE)
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(server: &str) -> Access {
        Access {
            server: server.into(),
            authority: "CA".into(),
            certificate: "CERT".into(),
            key: "KEY".into(),
        }
    }

    fn current(home: &Path) -> Value {
        let text = files::read(&home.join("kubeconfig")).unwrap();
        serde_yaml_ng::from_str::<Value>(&text).unwrap()["current-context"].clone()
    }

    #[test]
    fn the_newest_cluster_is_current_and_gives_way_when_it_ends() {
        let home = tempfile::tempdir().unwrap();
        register(home.path(), "1", &access("https://a:6443")).unwrap();
        register(home.path(), "2", &access("https://b:6443")).unwrap();
        assert_eq!(current(home.path()), "hpk-2");
        unregister(home.path(), "2").unwrap();
        assert_eq!(current(home.path()), "hpk-1");
        unregister(home.path(), "2").unwrap();
        unregister(home.path(), "1").unwrap();
        assert_eq!(current(home.path()), "");
        let alias = files::read(&home.path().join("kubernetes/admin.conf")).unwrap();
        assert!(!alias.contains("hpk-1"));
    }

    #[test]
    fn registering_twice_keeps_one_entry() {
        let mut config = empty();
        put(&mut config, "x", &access("https://a:1"));
        put(&mut config, "x", &access("https://a:2"));
        assert_eq!(config["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://a:2");
    }

    #[test]
    fn what_the_user_added_stays() {
        let home = tempfile::tempdir().unwrap();
        let own = "clusters:\n- name: mine\n  cluster: {server: 'https://c:1'}\n";
        std::fs::write(home.path().join("kubeconfig"), own).unwrap();
        register(home.path(), "1", &access("https://a:6443")).unwrap();
        unregister(home.path(), "1").unwrap();
        assert!(
            files::read(&home.path().join("kubeconfig"))
                .unwrap()
                .contains("mine")
        );
    }
}
