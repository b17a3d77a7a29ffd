#![allow(clippy::unwrap_used)]

use tokio::io::DuplexStream;

use super::*;
use crate::server::remote::channels::Size;
use crate::server::remote::status::Status;
use crate::server::remote::subprotocol::ALL;

async fn connect(wanted: Wanted) -> (Socket<DuplexStream>, Channels) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let channels = open(ours, wanted, ALL[0]).await;
    (
        Socket::from_raw_socket(theirs, Role::Client, None).await,
        channels,
    )
}

fn binary(bytes: &'static [u8]) -> Message {
    Message::Binary(Bytes::from_static(bytes))
}

#[tokio::test]
async fn channels_carry_input_sizes_output_and_status() {
    let (mut caller, mut channels) = connect(Wanted {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    })
    .await;
    assert_eq!(caller.next().await.unwrap().unwrap(), binary(&[STDOUT]));
    caller.send(binary(b"\x00typed")).await.unwrap();
    assert_eq!(channels.stdin.recv().await.unwrap(), "typed");
    let size = binary(b"\x04{\"Width\":80,\"Height\":24}");
    caller.send(size).await.unwrap();
    channels.resize.changed().await.unwrap();
    let size = Size {
        width: 80,
        height: 24,
    };
    assert_eq!(*channels.resize.borrow(), Some(size));
    caller.send(binary(&[CLOSE, STDIN])).await.unwrap();
    assert_eq!(channels.stdin.recv().await, None);
    for output in [
        Output::Stdout("shown".into()),
        Output::End(Status::Exited(0)),
    ] {
        channels.output.send(output).await.unwrap();
    }
    assert_eq!(caller.next().await.unwrap().unwrap(), binary(b"\x01shown"));
    let status = caller.next().await.unwrap().unwrap().into_data();
    assert_eq!(status[0], ERROR);
    assert_eq!(status[1..], Status::Exited(0).to_json());
    let Some(Ok(Message::Close(Some(close)))) = caller.next().await else {
        panic!("no close");
    };
    assert_eq!(close.code, CloseCode::Normal);
}

#[tokio::test]
async fn a_caller_that_hangs_up_is_gone() {
    let (caller, channels) = connect(Wanted {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    })
    .await;
    drop(caller);
    timeout(Duration::from_secs(5), channels.gone.cancelled())
        .await
        .unwrap();
}
