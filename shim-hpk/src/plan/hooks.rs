//! The spec's hooks: programs of the caller's that run where the shim runs (OCI runtime spec,
//! config.md, "POSIX-platform Hooks"). Those that are to run inside the container are refused.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use oci_spec::runtime::{Hook as Asked, Spec};
use serde_json::{Map, Value};

use crate::error::Error;

/// Those that are run, by their names in the spec.
pub const RUN: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

/// A container's hooks, each list in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// `prestart`, then `createRuntime`: once the namespaces are there, before the set-up.
    pub create: Vec<Hook>,
    /// After the program's start.
    pub poststart: Vec<Hook>,
    /// After the container is gone.
    pub poststop: Vec<Hook>,
    /// The container's state without what changes, as the spec's "State" has it.
    state: Map<String, Value>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its place in the spec, such as `hooks.createRuntime[0]`.
    pub field: String,
    pub path: PathBuf,
    /// With the program's name, if there is any.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub timeout: Option<Duration>,
}

impl Hooks {
    /// The state that a hook reads from its stdin; no pid once there is no process.
    pub fn state(&self, status: &str, pid: Option<i32>) -> Vec<u8> {
        let mut state = self.state.clone();
        state.insert("status".into(), status.into());
        if let Some(pid) = pid {
            state.insert("pid".into(), pid.into());
        }
        Value::from(state).to_string().into_bytes()
    }
}

/// Plans a container's hooks.
///
/// # Errors
/// [`Error::Unsupported`] for those that run inside the container, [`Error::Invalid`] for one
/// without an absolute path, with a malformed environment or with a timeout that isn't positive.
pub fn plan(spec: &Spec, id: &str, bundle: &Path) -> Result<Hooks, Error> {
    let Some(asked) = spec.hooks() else {
        return Ok(Hooks::default());
    };
    for (field, list) in [
        ("hooks.createContainer", asked.create_container()),
        ("hooks.startContainer", asked.start_container()),
    ] {
        if list.as_ref().is_some_and(|l| !l.is_empty()) {
            return Err(Error::Unsupported {
                field: field.into(),
                why: "hooks inside the container are not run",
            });
        }
    }
    #[allow(deprecated)]
    let mut create = list("prestart", asked.prestart())?;
    create.extend(list("createRuntime", asked.create_runtime())?);
    let mut state = Map::new();
    state.insert("ociVersion".into(), spec.version().clone().into());
    state.insert("id".into(), id.into());
    state.insert("bundle".into(), bundle.to_string_lossy().into());
    if let Some(annotations) = spec.annotations() {
        let all = annotations
            .iter()
            .map(|(k, v)| (k.clone(), v.clone().into()));
        state.insert("annotations".into(), Value::Object(all.collect()));
    }
    Ok(Hooks {
        create,
        poststart: list("poststart", asked.poststart())?,
        poststop: list("poststop", asked.poststop())?,
        state,
    })
}

fn list(name: &str, asked: &Option<Vec<Asked>>) -> Result<Vec<Hook>, Error> {
    let all = asked.iter().flatten().enumerate();
    all.map(|(n, hook)| one(format!("hooks.{name}[{n}]"), hook))
        .collect()
}

fn one(field: String, asked: &Asked) -> Result<Hook, Error> {
    let invalid = |part: &str, why: String| Error::Invalid {
        field: format!("{field}.{part}"),
        why,
    };
    if !asked.path().is_absolute() {
        let why = format!("{:?} is not absolute", asked.path());
        return Err(invalid("path", why));
    }
    let args = asked.args().clone().unwrap_or_default();
    if args.iter().any(|a| a.contains('\0')) {
        return Err(invalid("args", "a NUL in it".into()));
    }
    let env = asked.env().iter().flatten().map(|entry| {
        entry
            .split_once('=')
            .filter(|(name, _)| !name.is_empty() && !entry.contains('\0'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            // Its value may be a secret.
            .ok_or_else(|| invalid("env", "an entry is not of the form NAME=VALUE".into()))
    });
    let env = env.collect::<Result<_, _>>()?;
    let timeout = asked.timeout().map(|seconds| {
        u64::try_from(seconds)
            .ok()
            .filter(|&s| s > 0)
            .map(Duration::from_secs)
            .ok_or_else(|| invalid("timeout", format!("{seconds} is not positive")))
    });
    let timeout = timeout.transpose()?;
    Ok(Hook {
        field,
        path: asked.path().clone(),
        args,
        env,
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(hooks: Value) -> Result<Hooks, Error> {
        let spec = json!({"ociVersion": "1.2.0", "annotations": {"a": "b"}, "hooks": hooks});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        plan(&spec, "c1", Path::new("/b/c1"))
    }

    #[test]
    fn prestart_hooks_come_before_create_runtime_hooks() {
        let hooks = planned(json!({
            "createRuntime": [{"path": "/second"}],
            "prestart": [{"path": "/first", "args": ["first", "x"], "env": ["A=b=c"], "timeout": 5}],
        }));
        let hooks = hooks.unwrap();
        let fields: Vec<&str> = hooks.create.iter().map(|h| h.field.as_str()).collect();
        assert_eq!(fields, ["hooks.prestart[0]", "hooks.createRuntime[0]"]);
        assert_eq!(hooks.create[0].env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(hooks.create[0].timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_hook_reads_the_containers_state() {
        let hooks = planned(json!({"poststop": [{"path": "/x"}]})).unwrap();
        let read =
            |status, pid| -> Value { serde_json::from_slice(&hooks.state(status, pid)).unwrap() };
        let mut want = json!({"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7,
            "bundle": "/b/c1", "annotations": {"a": "b"}});
        assert_eq!(read("creating", Some(7)), want);
        want["status"] = "stopped".into();
        want.as_object_mut().unwrap().remove("pid");
        assert_eq!(read("stopped", None), want);
    }

    #[test]
    fn a_malformed_hook_is_refused_by_its_place() {
        for (hooks, want) in [
            (
                json!({"poststart": [{"path": "/a"}, {"path": "b"}]}),
                "hooks.poststart[1].path is invalid: \"b\" is not absolute",
            ),
            (
                json!({"poststop": [{"path": "/a", "timeout": 0}]}),
                "hooks.poststop[0].timeout is invalid: 0 is not positive",
            ),
            (
                json!({"prestart": [{"path": "/a", "env": ["=secret"]}]}),
                "hooks.prestart[0].env is invalid: an entry is not of the form NAME=VALUE",
            ),
            (
                json!({"createContainer": [{"path": "/a"}]}),
                "hooks.createContainer is not supported: hooks inside the container are not run",
            ),
        ] {
            assert_eq!(planned(hooks).unwrap_err().to_string(), want);
        }
    }
}
