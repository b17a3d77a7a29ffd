//! postStart and preStop: exec, HTTP or sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use thiserror::Error;

use crate::exec::{self, Target};
use crate::probes::check::{self, Verdict};
use crate::probes::http;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the hook's command failed with exit code {code}: {output}")]
    Command { code: u32, output: String },
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error(transparent)]
    Http(#[from] check::Error),
    #[error("the hook's request failed: {0}")]
    Answer(String),
}

/// A hook has no limit of its own: its container's end cuts it off. This is for exec, which wants one.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Runs a hook to its end; dropped in the middle, it is given up.
pub async fn run(
    target: &Target,
    container: &Container,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), Error> {
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        let output = exec::run(target, command, LIMIT).await?;
        if output.code != 0 {
            return Err(Error::Command {
                code: output.code,
                output: output.text,
            });
        }
    } else if let Some(action) = &hook.http_get {
        match http::get(container, pod_ip, action).await? {
            Verdict::Success | Verdict::Warning(_) => {}
            Verdict::Failure(text) | Verdict::Error(text) => return Err(Error::Answer(text)),
        }
    } else if let Some(action) = &hook.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    Ok(())
}
