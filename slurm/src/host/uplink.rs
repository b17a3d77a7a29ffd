//! Starting the bubble's uplink (crate hpk-uplink). It runs on the host and, for the overlay's mode
//! `kernel`, forwards a UDP port into the bubble. (The TCP ports are `forward`'s.)

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hpk_uplink::Uplink;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Starts it; when this returns, it runs, and slirp4netns also forwards.
pub async fn start(uplink: &Uplink, log: File) -> Result<Child> {
    let (arguments, request) = uplink.plan();
    let program = uplink.program.file();
    let errors = log.try_clone().context("duplicating the uplink's log")?;
    // One left by a slirp4netns that was killed would be in the new one's way.
    let _ = std::fs::remove_file(&uplink.api_socket);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("running {}", program.display()))?;
    if let Some(request) = request {
        ask(uplink, &request, &mut child).await?;
    }
    Ok(child)
}

async fn ask(uplink: &Uplink, request: &str, child: &mut Child) -> Result<()> {
    let mut stream = loop {
        match UnixStream::connect(&uplink.api_socket).await {
            Ok(stream) => break stream,
            Err(_) if child.try_wait().context("awaiting slirp4netns")?.is_none() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error).context("slirp4netns ended before it listened"),
        }
    };
    stream
        .write_all(request.as_bytes())
        .await
        .context("asking slirp4netns")?;
    stream.shutdown().await.context("asking slirp4netns")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .context("slirp4netns' answer")?;
    let parsed: serde_json::Value =
        serde_json::from_str(&answer).with_context(|| format!("slirp4netns' answer {answer:?}"))?;
    if !parsed["error"].is_null() {
        bail!("slirp4netns: {request}: {}", parsed["error"]);
    }
    Ok(())
}
