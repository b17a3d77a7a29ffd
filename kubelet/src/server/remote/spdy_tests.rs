#![allow(clippy::unwrap_used)]

use tokio::io::DuplexStream;

use super::*;
use crate::server::remote::channels::Size;
use crate::server::remote::status::Status;

const TERMINAL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: false,
    tty: true,
};
const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const RESIZE: u32 = 7;

/// The caller's end.
struct Caller {
    connection: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
}

impl Caller {
    async fn send(&mut self, frame: Frame) {
        let mut bytes = Vec::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.connection.write_all(&bytes).await.unwrap();
    }

    async fn data(&mut self, id: u32, fin: bool, text: &[u8]) {
        let bytes = text.to_vec();
        self.send(Frame::Data { id, fin, bytes }).await;
    }

    async fn open(&mut self, id: u32, kind: &str) {
        let headers = vec![("streamtype".to_owned(), kind.to_owned())];
        let fin = false;
        self.send(Frame::SynStream { id, fin, headers }).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 1024];
            match self.connection.read(&mut buffer).await {
                Ok(count) if count > 0 => self.decoder.feed(&buffer[..count]),
                _ => return None,
            }
        }
    }
}

/// A caller with a terminal, its streams open, and the process's side of it.
async fn terminal() -> (Caller, Channels) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mut caller = Caller {
        connection: theirs,
        encoder: Encoder::default(),
        decoder: Decoder::default(),
    };
    let opening = tokio::spawn(open(ours, TERMINAL));
    for (id, kind) in [
        (ERROR, "error"),
        (STDIN, "stdin"),
        (STDOUT, "stdout"),
        (RESIZE, "resize"),
    ] {
        caller.open(id, kind).await;
        let reply = caller.next().await;
        assert!(matches!(reply, Some(Frame::SynReply { id: of, .. }) if of == id));
    }
    (caller, opening.await.unwrap().unwrap())
}

#[tokio::test]
async fn input_sizes_and_output_arrive_and_the_status_comes_last() {
    let (mut caller, mut channels) = terminal().await;
    caller.data(STDIN, false, b"typed").await;
    assert_eq!(channels.stdin.recv().await.unwrap(), "typed");
    caller
        .data(RESIZE, false, b"{\"Width\":80,\"Height\":24}")
        .await;
    channels.resize.changed().await.unwrap();
    let size = Size {
        width: 80,
        height: 24,
    };
    assert_eq!(*channels.resize.borrow(), Some(size));
    caller.data(STDIN, true, b"").await;
    assert_eq!(channels.stdin.recv().await, None);
    for output in [
        Output::Stdout("shown".into()),
        Output::End(Status::Exited(3)),
    ] {
        channels.output.send(output).await.unwrap();
    }
    let mut text = Vec::new();
    let mut ended = Vec::new();
    while ended.len() < 4 {
        let Some(Frame::Data { id, fin, bytes }) = caller.next().await else {
            panic!("hung up");
        };
        if id == STDOUT {
            text.extend_from_slice(&bytes);
        }
        if id == ERROR {
            assert_eq!(bytes, Status::Exited(3).to_json());
        }
        if fin {
            ended.push(id);
        }
    }
    assert_eq!(text, b"shown");
    drop(caller);
    channels.gone.cancelled().await;
}

#[tokio::test]
async fn a_process_that_does_not_read_still_shows_what_it_writes() {
    let (caller, channels) = terminal().await;
    let (mut read, mut write) = tokio::io::split(caller.connection);
    let mut encoder = caller.encoder;
    // Far more than anybody keeps: this task stays stuck.
    let stuffing = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let frame = Frame::Data {
            id: STDIN,
            fin: false,
            bytes: vec![b'x'; 30_000],
        };
        encoder.encode(&frame, &mut bytes).unwrap();
        loop {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let output = channels.output.clone();
    tokio::spawn(async move {
        let shown = Bytes::from(vec![b'y'; 10_000]);
        for _ in 0..50 {
            output.send(Output::Stdout(shown.clone())).await.unwrap();
        }
    });
    let mut seen = 0;
    let mut buffer = [0; 10_000];
    while seen < 500_000 {
        let reading = timeout(Duration::from_secs(5), read.read(&mut buffer));
        seen += reading.await.unwrap().unwrap();
    }
    stuffing.abort();
    drop(channels);
}

#[tokio::test]
async fn a_caller_that_hangs_up_is_gone() {
    let (caller, channels) = terminal().await;
    drop(caller);
    timeout(Duration::from_secs(5), channels.gone.cancelled())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_opens_nothing_is_not_waited_for_long() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    assert!(matches!(open(ours, TERMINAL).await, Err(Error::TimedOut)));
}
