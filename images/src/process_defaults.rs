//! What an image's config says of the process to run, merged with what the user asks for.
//!
//! The merge of command and arguments is Kubernetes' (`command` replaces the entrypoint and drops the image's cmd;
//! `args` replaces cmd): <https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>.
//! `docker run IMAGE CMD…` is the case of `args` alone.

use oci_spec::image::ImageConfiguration;

/// PATH where the image sets none, as Docker and containerd have it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run where the user says nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessDefaults {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, the image's, with PATH always among them.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// The image's user as [`crate::user::resolve`] takes it; empty for root.
    pub user: String,
    /// Signal that asks the program to stop, as the image names it, e.g. `SIGQUIT`; none: SIGTERM.
    pub stop_signal: Option<String>,
    /// Paths the image declares as volumes.
    pub volumes: Vec<String>,
}

/// Neither the image nor the user says what to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no command given, and the image has neither entrypoint nor cmd")]
pub struct NoCommand;

/// Merges the image's config with `command` (Kubernetes' `command`, Docker's `--entrypoint`) and `args`.
///
/// An empty list counts as not given, as in Kubernetes.
pub fn for_container(
    image: &ImageConfiguration,
    command: Option<&[String]>,
    args: Option<&[String]>,
) -> Result<ProcessDefaults, NoCommand> {
    let given = |list: Option<&[String]>| list.filter(|l| !l.is_empty()).map(<[String]>::to_vec);
    let config = image.config().as_ref();
    let entrypoint = config
        .and_then(|c| c.entrypoint().clone())
        .unwrap_or_default();
    let cmd = config.and_then(|c| c.cmd().clone()).unwrap_or_default();
    let mut argv = match (given(command), given(args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entrypoint, args].concat(),
        (None, None) => [entrypoint, cmd].concat(),
    };
    if argv.first().is_none_or(String::is_empty) {
        argv.clear();
        return Err(NoCommand);
    }

    let mut env = vec![format!("PATH={DEFAULT_PATH}")];
    merge_env(
        &mut env,
        config.and_then(|c| c.env().as_deref()).unwrap_or_default(),
    );
    let cwd = config
        .and_then(|c| c.working_dir().clone())
        .unwrap_or_default();
    Ok(ProcessDefaults {
        args: argv,
        env,
        cwd: if cwd.starts_with('/') {
            cwd
        } else {
            format!("/{cwd}")
        },
        user: config.and_then(|c| c.user().clone()).unwrap_or_default(),
        stop_signal: config.and_then(|c| c.stop_signal().clone()),
        volumes: config.and_then(|c| c.volumes().clone()).unwrap_or_default(),
    })
}

/// The number of a signal: `SIGQUIT`, `quit`, `3`, `RTMIN+3`; as docker takes them.
pub fn signal_number(text: &str) -> Option<u32> {
    // The first and the last real-time signal that a C library leaves to programs.
    const RT_MIN: u32 = 34;
    const RT_MAX: u32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let digits = |text: &str| {
        let all = text.chars().all(|c| c.is_ascii_digit());
        all.then(|| text.parse::<u32>().ok()).flatten()
    };
    // How far from one of those two: nothing, or a sign and a number.
    let distance = |rest: &str, sign: char| match rest {
        "" => Some(0),
        _ => digits(rest.strip_prefix(sign)?).filter(|distance| *distance <= RT_MAX - RT_MIN),
    };
    if let Some(number) = digits(text) {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    if let Some(above) = name.strip_prefix("RTMIN") {
        return Some(RT_MIN + distance(above, '+')?);
    }
    if let Some(below) = name.strip_prefix("RTMAX") {
        return Some(RT_MAX - distance(below, '-')?);
    }
    let named: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some((named as i32).unsigned_abs())
}

/// Lays `over` upon `base` by name: a known name gets the new value in its old place, a new one comes last.
pub fn merge_env(base: &mut Vec<String>, over: &[String]) {
    for entry in over {
        let name = entry.split('=').next().unwrap_or_default();
        let known = base.iter_mut().find(|e| e.split('=').next() == Some(name));
        match known {
            Some(old) => old.clone_from(entry),
            None => base.push(entry.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &str) -> ImageConfiguration {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_merge_as_kubernetes_documents() {
        let image = image(r#"{"Entrypoint":["/ep","a"],"Cmd":["c"]}"#);
        let run = |command: Option<&str>, args: Option<&str>| {
            let (command, args) = (command.map(words), args.map(words));
            for_container(&image, command.as_deref(), args.as_deref())
                .unwrap()
                .args
                .join(" ")
        };
        assert_eq!(run(None, None), "/ep a c");
        assert_eq!(run(Some("sh -c"), None), "sh -c");
        assert_eq!(run(None, Some("x y")), "/ep a x y");
        assert_eq!(run(Some("sh"), Some("x")), "sh x");
        assert_eq!(run(Some(""), Some("")), "/ep a c");
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert_eq!(for_container(&image("{}"), None, None), Err(NoCommand));
        assert_eq!(
            for_container(&image(r#"{"Cmd":[""]}"#), None, None),
            Err(NoCommand)
        );
    }

    #[test]
    fn the_image_may_replace_the_default_path() {
        let with = for_container(
            &image(r#"{"Cmd":["x"],"Env":["PATH=/bin","A=1"]}"#),
            None,
            None,
        )
        .unwrap();
        assert_eq!(with.env, ["PATH=/bin", "A=1"]);
        let without = for_container(&image(r#"{"Cmd":["x"]}"#), None, None).unwrap();
        assert_eq!(without.env, [format!("PATH={DEFAULT_PATH}")]);
        assert_eq!(without.cwd, "/");
    }

    #[test]
    fn signals_are_names_or_numbers() {
        let known = [
            ("SIGQUIT", 3),
            ("QUIT", 3),
            ("3", 3),
            ("INT", 2),
            ("10", 10),
            ("sigterm", 15),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ];
        for (text, number) in known {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for text in [
            "nonsense", "", "0", "65", "RTMIN3", "RTMIN+31", "RTMAX-31", "RTMIN++3", "+15",
        ] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }

    #[test]
    fn environment_entries_are_replaced_in_place_by_name() {
        let mut env = words("A=1 B=2");
        merge_env(&mut env, &words("B=3 C=a=b A="));
        assert_eq!(env, ["A=", "B=3", "C=a=b"]);
    }
}
