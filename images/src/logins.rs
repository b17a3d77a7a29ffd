//! The user's own logins at registries, where docker, podman, skopeo and apptainer keep them (containers-auth.json(5)).
//!
//! [`files`] names the files; [`find`] reads them anew for each pull, so a `docker login` counts at once. Credential helpers
//! (`credHelpers`, `credsStore`) are asked by their protocol
//! (<https://github.com/docker/docker-credential-helpers>): `docker-credential-NAME get`, the server on its standard input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::credentials::{self, Credentials, Keyring};
use crate::reference::Reference;
use crate::source::chain;

/// A helper may ask a service of its site, but must not hold up a pull for long.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What helpers know Docker's hub by.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A file that could not be used. Never holds a secret.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("reading it")]
    Read(#[source] std::io::Error),
    #[error(transparent)]
    Form(#[from] credentials::Error),
    #[error("{0:?} is no name of a credential helper")]
    HelperName(String),
    #[error("starting {program}")]
    HelperStart {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} ended with {status}: {said}")]
    HelperRefused {
        program: String,
        status: std::process::ExitStatus,
        said: String,
    },
    #[error("{0} took longer than {HELPER_TIMEOUT:?}")]
    HelperSlow(String),
    #[error("{0} gave an identity token; only a user name with a password can be used")]
    IdentityToken(String),
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    /// Only the entries of the registry asked for are read further.
    auths: BTreeMap<String, serde_json::Value>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

impl Config {
    /// The helper to ask for `host`; an empty name stands for the file itself.
    fn helper(&self, host: &str) -> Option<&str> {
        let mut helpers = self.cred_helpers.iter();
        let own = helpers.find(|(key, _)| credentials::normalise_key(key) == host);
        let helper = own.map(|(_, helper)| helper).or(self.creds_store.as_ref());
        helper.map(String::as_str).filter(|name| !name.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The places, the first of most weight: `REGISTRY_AUTH_FILE` alone where it is set; else podman's and skopeo's
/// (`$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`), docker's (`$DOCKER_CONFIG/config.json`, else
/// `~/.docker/config.json`), apptainer's (`~/.apptainer/docker-config.json`). Any may be missing.
pub fn files() -> Vec<PathBuf> {
    files_of(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn files_of(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let below = |name: &str, path: &str| variable(name).map(|folder| folder.join(path));
    let config = below("XDG_CONFIG_HOME", "containers/auth.json")
        .or_else(|| below("HOME", ".config/containers/auth.json"));
    let docker = below("DOCKER_CONFIG", "config.json");
    let docker = docker.or_else(|| below("HOME", ".docker/config.json"));
    [
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        config,
        docker,
        below("HOME", ".apptainer/docker-config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The credentials for `reference` in `files`, best first. A file that can't be used is named in the log: the image may be
/// free to all.
pub async fn find(files: &[PathBuf], reference: &Reference) -> Vec<Credentials> {
    let mut found = Vec::new();
    for file in files {
        match of_file(file, reference).await {
            Ok(credentials) => found.extend(credentials),
            Err(fault) => warn(file, &fault),
        }
    }
    found
}

fn warn(file: &Path, fault: &Fault) {
    tracing::warn!(
        file = %file.display(),
        error = chain(fault),
        "a login at a registry can't be used"
    );
}

async fn of_file(path: &Path, reference: &Reference) -> Result<Vec<Credentials>, Fault> {
    let json = match tokio::fs::read(path).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Fault::Read)?,
    };
    let config: Config = serde_json::from_slice(&json).map_err(credentials::without_content)?;
    let host = reference.host();
    if let Some(helper) = config.helper(&host) {
        let server = match host.as_str() {
            "docker.io" => DOCKER_HUB,
            other => other,
        };
        match ask(helper, server).await {
            Ok(Some(credentials)) => return Ok(vec![credentials]),
            Ok(None) => {}
            Err(fault) => warn(path, &fault),
        }
    }
    let mut auths = BTreeMap::new();
    for (key, auth) in config.auths {
        if credentials::is_for(&key, reference) {
            let auth = serde_json::from_value(auth).map_err(credentials::without_content)?;
            auths.insert(key, auth);
        }
    }
    let keyring = Keyring::from_auths(auths)?;
    Ok(keyring.find(reference).cloned().collect())
}

/// None where the helper knows no credentials for `server`.
async fn ask(helper: &str, server: &str) -> Result<Option<Credentials>, Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(plain) {
        return Err(Fault::HelperName(helper.to_owned()));
    }
    let program = format!("docker-credential-{helper}");
    let answer = tokio::time::timeout(HELPER_TIMEOUT, call(&program, server));
    let output = answer
        .await
        .map_err(|_| Fault::HelperSlow(program.clone()))?;
    let output = output.map_err(|source| Fault::HelperStart {
        program: program.clone(),
        source,
    })?;
    judge(&program, &output)
}

fn judge(program: &str, output: &std::process::Output) -> Result<Option<Credentials>, Fault> {
    let program = program.to_owned();
    if !output.status.success() {
        // On standard output, by the protocol.
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return match said.starts_with("credentials not found") {
            true => Ok(None),
            false => Err(Fault::HelperRefused {
                program,
                status: output.status,
                said,
            }),
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(credentials::without_content)?;
    if answer.username == "<token>" {
        return Err(Fault::IdentityToken(program));
    }
    Ok(Some(Credentials::Basic {
        username: answer.username,
        password: answer.secret,
    }))
}

async fn call(program: &str, server: &str) -> std::io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // One that doesn't read is judged by what it answers.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(e),
            _ => {}
        }
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_files_are_those_of_docker_podman_and_apptainer() {
        let of = |set: &[(&str, &str)]| {
            files_of(|name| {
                let value = set.iter().find(|(key, _)| *key == name);
                value.map(|(_, value)| PathBuf::from(value))
            })
        };
        let home = [
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
            "/h/.apptainer/docker-config.json",
        ];
        assert_eq!(of(&[("HOME", "/h")]), home.map(PathBuf::from));
        let named = [("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a.json")];
        assert_eq!(of(&named), [PathBuf::from("/a.json")]);
        let all = of(&[
            ("XDG_RUNTIME_DIR", "/r"),
            ("DOCKER_CONFIG", "/d"),
            ("HOME", "/h"),
        ]);
        assert_eq!(all[0], Path::new("/r/containers/auth.json"));
        assert!(all.contains(&"/d/config.json".into()));
        assert!(!all.contains(&"/h/.docker/config.json".into()));
        assert_eq!(of(&[]), Vec::<PathBuf>::new());
    }

    fn user(name: &str) -> Credentials {
        Credentials::Basic {
            username: name.to_owned(),
            password: "p".to_owned(),
        }
    }

    #[tokio::test]
    async fn the_first_file_goes_first_and_one_that_is_broken_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let auth =
            |name: &str| format!(r#"{{"auths":{{"r:5":{{"username":"{name}","password":"p"}}}}}}"#);
        let files = [
            at("a", &auth("one")),
            dir.path().join("no such"),
            at("b", "no json"),
            at("c", r#"{"currentContext":"default"}"#),
            at("d", &auth("two")),
        ];
        let reference: Reference = "r:5/app".parse().unwrap();
        assert_eq!(find(&files, &reference).await, [user("one"), user("two")]);
        let elsewhere: Reference = "quay.io/app".parse().unwrap();
        assert_eq!(find(&files, &elsewhere).await, []);
    }

    #[tokio::test]
    async fn neither_a_helper_nor_another_entry_spoils_the_files_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let reference: Reference = "r:5/app".parse().unwrap();
        for more in [
            r#""credsStore":"""#,
            r#""credsStore":"hpk-no-such-helper""#,
            r#""credsStore":"hpk-no-such-helper","credHelpers":{"r:5":""}"#,
            r#""credHelpers":{"r:5":"../x"}"#,
        ] {
            let json = format!(
                r#"{{{more},"auths":{{"a":{{"auth":"!"}},"b":7,
                    "r:5":{{"username":"one","password":"p"}}}}}}"#
            );
            std::fs::write(&path, json).unwrap();
            let found = of_file(&path, &reference).await.unwrap();
            assert_eq!(found, [user("one")], "{more}");
        }
    }

    #[test]
    fn a_helper_is_found_by_any_form_of_its_registrys_name() {
        let config: Config = serde_json::from_str(
            r#"{"credsStore":"all","credHelpers":{"https://index.docker.io/v1/":"hub","r:5":""}}"#,
        )
        .unwrap();
        assert_eq!(config.helper("docker.io"), Some("hub"));
        assert_eq!(config.helper("r:5"), None);
        assert_eq!(config.helper("quay.io"), Some("all"));
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server_and_its_refusals_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("helper");
        let script = r#"#!/bin/sh
            read server
            case $server in
            r:5) echo '{"ServerURL":"r:5","Username":"one","Secret":"p"}' ;;
            https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"p"}' ;;
            token) echo '{"Username":"<token>","Secret":"x"}' ;;
            none) echo "credentials not found in native keychain"; exit 1 ;;
            *) echo "the keychain is locked"; exit 1 ;;
            esac"#;
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let say = async |server: &str| {
            let output = call(program.to_str().unwrap(), server).await.unwrap();
            judge("helper", &output)
        };
        assert_eq!(say("r:5").await.unwrap(), Some(user("one")));
        assert_eq!(say(DOCKER_HUB).await.unwrap(), Some(user("hub")));
        assert_eq!(say("none").await.unwrap(), None);
        let locked = say("other").await.unwrap_err().to_string();
        assert!(locked.contains("the keychain is locked"), "{locked}");
        assert!(matches!(say("token").await, Err(Fault::IdentityToken(_))));
        let fault = ask("../x", "r:5").await.unwrap_err().to_string();
        assert!(fault.contains("../x"), "{fault}");
    }
}
