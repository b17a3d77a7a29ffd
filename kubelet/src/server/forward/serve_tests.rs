#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

/// Sends frames, then collects the data of each stream until `ends` of them have ended.
async fn talk(frames: Vec<Frame>, ends: usize) -> HashMap<u32, Vec<u8>> {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(serve(ours, None, "default/web".to_owned()));
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let mut bytes = Vec::new();
    for frame in frames {
        encoder.encode(&frame, &mut bytes).unwrap();
    }
    theirs.write_all(&bytes).await.unwrap();
    let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut ended = 0;
    let mut buffer = [0; 4096];
    while ended < ends {
        let reading = timeout(Duration::from_secs(5), theirs.read(&mut buffer));
        let count = reading.await.unwrap().unwrap();
        decoder.feed(&buffer[..count]);
        while let Some(frame) = decoder.next_frame().unwrap() {
            if let Frame::Data { id, fin, bytes } = frame {
                streams.entry(id).or_default().extend_from_slice(&bytes);
                ended += usize::from(fin);
            }
        }
    }
    drop(theirs);
    serving.await.unwrap();
    streams
}

fn open(id: u32, kind: &str, port: u16) -> Frame {
    let header = |name: &str, value: String| (name.to_owned(), value);
    Frame::SynStream {
        id,
        fin: false,
        headers: vec![
            header("streamtype", kind.to_owned()),
            header("port", port.to_string()),
            header("requestid", "0".to_owned()),
        ],
    }
}

#[tokio::test]
async fn a_server_that_answers_after_the_end_of_input_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let answer = text.to_uppercase();
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let input = Frame::Data {
        id: 3,
        fin: true,
        bytes: b"question".to_vec(),
    };
    let streams = talk(
        vec![open(1, "error", port), open(3, "data", port), input],
        2,
    )
    .await;
    assert_eq!(streams[&3], b"QUESTION");
    assert_eq!(streams[&1], b"");
}

#[tokio::test]
async fn a_port_nobody_listens_at_is_told_on_the_error_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let streams = talk(vec![open(1, "error", port), open(3, "data", port)], 2).await;
    let text = String::from_utf8_lossy(&streams[&1]).into_owned();
    let expected = format!("error forwarding port {port} to pod default/web: ");
    assert!(text.starts_with(&expected), "{text}");
}
