//! The process of an exec: the container's own, with other arguments.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("can't understand {path}")]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path} has no process")]
    NoProcess { path: PathBuf },
}

/// An OCI `process` with the environment, user, folder, capabilities and limits of the container in
/// `bundle`.
pub fn exec_process(bundle: &Path, command: &[String], tty: bool) -> Result<Value, Error> {
    let path = bundle.join("config.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::Read { path, source }),
    };
    let mut spec: Value = match serde_json::from_slice(&text) {
        Ok(spec) => spec,
        Err(source) => return Err(Error::Parse { path, source }),
    };
    let Some(Value::Object(mut process)) = spec.get_mut("process").map(Value::take) else {
        return Err(Error::NoProcess { path });
    };
    process.insert("args".to_owned(), json!(command));
    process.insert("terminal".to_owned(), json!(tty));
    process.remove("consoleSize");
    process.remove("commandLine");
    if tty {
        let env = process.entry("env").or_insert_with(|| json!([]));
        if let Value::Array(env) = env {
            let is_term =
                |value: &Value| value.as_str().is_some_and(|pair| pair.starts_with("TERM="));
            if !env.iter().any(is_term) {
                env.push(json!("TERM=xterm"));
            }
        }
    }
    Ok(Value::Object(process))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_runs_as_the_container_does() {
        let bundle = tempfile::tempdir().unwrap();
        let spec = json!({"process": {
            "terminal": false, "args": ["sleep", "9"], "cwd": "/work", "env": ["A=b"],
            "user": {"uid": 7, "gid": 8}, "capabilities": {"bounding": ["CAP_KILL"]},
        }});
        fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
        let command = ["sh".to_owned(), "-c".to_owned()];
        let process = exec_process(bundle.path(), &command, true).unwrap();
        assert_eq!(process["args"], json!(["sh", "-c"]));
        assert_eq!(process["terminal"], json!(true));
        assert_eq!(process["env"], json!(["A=b", "TERM=xterm"]));
        for kept in ["cwd", "user", "capabilities"] {
            assert_eq!(process[kept], spec["process"][kept]);
        }
    }

    #[test]
    fn a_bundle_without_a_process_is_an_error() {
        let bundle = tempfile::tempdir().unwrap();
        let missing = exec_process(bundle.path(), &[], false);
        assert!(matches!(missing, Err(Error::Read { .. })));
        fs::write(bundle.path().join("config.json"), "{}").unwrap();
        let none = exec_process(bundle.path(), &[], false);
        assert!(matches!(none, Err(Error::NoProcess { .. })));
    }
}
