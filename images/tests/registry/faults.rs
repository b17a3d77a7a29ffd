//! A registry that misbehaves on command, on loopback, and pulls from it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::fixtures::{Entry, Image};
use super::*;

/// What is done wrong with the next answers for a blob, in order; then it is answered well.
#[derive(Clone, Copy)]
enum Fault {
    /// That status and nothing else.
    Status(u16),
    /// The length is promised, that many bytes come.
    Cut(usize),
    /// All of it in one piece of an answer whose end isn't told.
    Unended,
    /// One byte is another.
    Wrong,
    /// The other server has it.
    Elsewhere,
}

#[derive(Default)]
struct State {
    content: HashMap<String, Vec<u8>>,
    faults: Vec<Fault>,
    /// Where [`Fault::Elsewhere`] leads, host and port.
    elsewhere: String,
    /// A token is asked for.
    private: bool,
    /// Path, Range and Authorization of each request for a blob.
    asked: Vec<(String, Option<String>, Option<String>)>,
}

/// Serves one image as `app:1`.
struct Server {
    host: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    async fn start(image: &Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let layout = tempfile::tempdir().unwrap();
        let manifest = image.write(layout.path(), ARCHITECTURE);
        let mut content = HashMap::new();
        let blobs = layout.path().join("blobs/sha256");
        for entry in fs::read_dir(blobs).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            content.insert(format!("sha256:{name}"), fs::read(path).unwrap());
        }
        let digest = manifest.split('"').find(|part| part.starts_with("sha256:"));
        let top = content[digest.unwrap()].clone();
        content.insert("1".to_owned(), top);
        let state = Arc::new(Mutex::new(State {
            content,
            ..State::default()
        }));
        let served = Arc::clone(&state);
        let own = host.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_all(stream, own.clone(), Arc::clone(&served)));
            }
        });
        Self { host, state }
    }

    fn fail(&self, faults: &[Fault]) {
        let mut faults = faults.to_vec();
        faults.reverse();
        self.state.lock().unwrap().faults = faults;
    }

    fn reference(&self) -> Reference {
        format!("{}/app:1", self.host).parse().unwrap()
    }

    fn ranges(&self) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        state
            .asked
            .iter()
            .map(|(_, range, _)| range.clone())
            .collect()
    }
}

async fn answer_all(stream: TcpStream, host: String, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        let header = |name: &str| {
            head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let (answer, cut) = answer(
            &path,
            header("range"),
            header("authorization"),
            &host,
            &state,
        );
        if stream.get_mut().write_all(&answer).await.is_err() || cut {
            return;
        }
    }
}

/// The answer, and whether the connection is cut after it.
fn answer(
    path: &str,
    range: Option<String>,
    authorization: Option<String>,
    host: &str,
    state: &Mutex<State>,
) -> (Vec<u8>, bool) {
    let mut state = state.lock().unwrap();
    let full = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let mut bytes =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    if path.starts_with("/token") {
        return (full("200 OK", "", br#"{"token":"sesame"}"#), false);
    }
    if state.private && authorization.as_deref() != Some("Bearer sesame") {
        let wanted =
            format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"x\"\r\n");
        return (full("401 Unauthorized", &wanted, b""), false);
    }
    // A mirror is told the registry's own name in a query.
    let named = path.split('?').next().unwrap();
    let name = named.rsplit('/').next().unwrap().to_owned();
    let is_blob = path.contains("/blobs/");
    if is_blob {
        state
            .asked
            .push((path.to_owned(), range.clone(), authorization));
    }
    let Some(content) = state.content.get(&name).cloned() else {
        let status = if path == "/v2/" {
            "200 OK"
        } else {
            "404 Not Found"
        };
        return (full(status, "", b""), false);
    };
    // The config is small and comes first; layers are what fails.
    let fault = (is_blob && content.len() > LARGE)
        .then(|| state.faults.pop())
        .flatten();
    let kind = match is_blob {
        true => "Content-Type: application/octet-stream\r\n",
        false => "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n",
    };
    let from = range.as_deref().and_then(|r| {
        r.strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    if from.is_some_and(|from| from >= content.len()) {
        return (full("416 Range Not Satisfiable", "", b""), false);
    }
    let (status, body) = match from {
        Some(from) => ("206 Partial Content", content[from..].to_vec()),
        None => ("200 OK", content),
    };
    match fault {
        None => (full(status, kind, &body), false),
        Some(Fault::Status(code)) => (full(&format!("{code} No"), "", b""), false),
        Some(Fault::Elsewhere) => {
            let location = format!("Location: http://{}{path}\r\n", state.elsewhere);
            (full("307 Temporary Redirect", &location, b""), false)
        }
        Some(Fault::Cut(bytes)) => {
            let whole = full(status, kind, &body);
            let head = whole.len() - body.len();
            (whole[..head + bytes.min(body.len() - 1)].to_vec(), true)
        }
        Some(Fault::Unended) => {
            let length = body.len();
            let chunked = format!("Transfer-Encoding: chunked\r\n{kind}\r\n{length:x}\r\n");
            let head = format!("HTTP/1.1 {status}\r\n{chunked}").into_bytes();
            ([&head[..], &body, b"\r\n"].concat(), true)
        }
        Some(Fault::Wrong) => {
            let mut body = body;
            body[0] ^= 1;
            (full(status, kind, &body), false)
        }
    }
}

const LARGE: usize = 16 << 10;

/// One layer of 64 KiB.
fn image() -> Image {
    image_of(4 * LARGE)
}

/// One layer of that many bytes that don't compress.
fn image_of(bytes: usize) -> Image {
    let mut number = 7_u32;
    let mut noise = String::new();
    while noise.len() < bytes {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push(char::from(b'!' + (number >> 24) as u8 % 90));
    }
    Image::new([vec![Entry::file("noise", &noise)]], "{}")
}

async fn pull(home: &Home, server: &Server) -> Result<hpk_images::Image, hpk_images::Error> {
    let store = home.store().await;
    store
        .resolve_and_ensure(&server.reference(), PullPolicy::Always, None, &Quiet)
        .await
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn a_pull_that_breaks_off_goes_on_where_it_was() {
    let server = Server::start(&image()).await;
    server.fail(&[Fault::Cut(20_000), Fault::Status(500), Fault::Cut(10_000)]);
    let home = Home::new("");
    pull(&home, &server).await.unwrap();
    assert_eq!(home.leftovers(), Vec::<String>::new());
    let ranges: Vec<String> = server.ranges().into_iter().flatten().collect();
    assert_eq!(ranges, ["bytes=20000-", "bytes=20000-", "bytes=30000-"]);
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn a_rest_that_is_not_there_is_not_asked_for_in_vain() {
    let server = Server::start(&image()).await;
    server.fail(&[Fault::Unended]);
    pull(&Home::new(""), &server).await.unwrap();
    assert_eq!(server.ranges(), [None, None]);
    let server = Server::start(&image()).await;
    server.fail(&[Fault::Cut(20_000), Fault::Status(416)]);
    pull(&Home::new(""), &server).await.unwrap();
    let rest = Some("bytes=20000-".to_owned());
    assert_eq!(server.ranges(), [None, None, rest, None]);
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn wrong_bytes_are_asked_for_again_and_never_kept() {
    let server = Server::start(&image()).await;
    // Wrong in the whole, and in the rest of what broke off.
    server.fail(&[Fault::Wrong, Fault::Cut(20_000), Fault::Wrong]);
    let home = Home::new("");
    pull(&home, &server).await.unwrap();
    // However much comes, it is given up: what is wrong doesn't count as getting on.
    let other = Server::start(&image_of(3 << 20)).await;
    other.fail(&[Fault::Wrong; 16]);
    let home = Home::new("");
    let fault = pull(&home, &other).await.unwrap_err();
    assert_eq!(fault.kind(), ErrorKind::Corrupt, "{fault:?}");
    assert_eq!(other.state.lock().unwrap().faults.len(), 16 - 5);
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert!(home.store().await.list().await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn a_registry_that_is_asked_too_often_is_given_time() {
    let server = Server::start(&image()).await;
    server.fail(&[Fault::Status(429)]);
    let begun = std::time::Instant::now();
    pull(&Home::new(""), &server).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
#[ignore = "needs squashfs-tools"]
async fn a_token_is_got_and_not_shown_to_the_host_of_a_redirect() {
    let (server, other) = (Server::start(&image()).await, Server::start(&image()).await);
    {
        let mut state = server.state.lock().unwrap();
        (state.private, state.elsewhere) = (true, other.host.clone());
    }
    server.fail(&[Fault::Elsewhere]);
    pull(&Home::new(""), &server).await.unwrap();
    let shown = |server: &Server| {
        let state = server.state.lock().unwrap();
        let last = state
            .asked
            .iter()
            .rev()
            .find(|(_, range, _)| range.is_none());
        last.map(|(_, _, authorization)| authorization.clone())
    };
    assert_eq!(shown(&server), Some(Some("Bearer sesame".to_owned())));
    assert_eq!(shown(&other), Some(None));
}

/// `registry` has it as `app:1`; this one, of what is large in it, nothing.
async fn poor_mirror(image: &Image, registry: &Registry) -> (Server, Home) {
    registry.push(image, "app:1");
    let mirror = Server::start(image).await;
    let state = &mirror.state;
    state
        .lock()
        .unwrap()
        .content
        .retain(|_, it| it.len() <= LARGE);
    let yaml = format!(
        "mirrors: {{\"{}\": {{endpoint: [\"http://{}\"]}}}}\n",
        registry.host(),
        mirror.host
    );
    (mirror, Home::new(&yaml))
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_blob_that_a_mirror_lacks_is_got_from_the_registry() {
    let registry = Registry::start(None, false);
    let (mirror, home) = poor_mirror(&image(), &registry).await;
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let store = home.store().await;
    let log = Log::default();
    let pulled = store.resolve_and_ensure(&tag, PullPolicy::Always, None, &log);
    assert_eq!(pulled.await.unwrap().reference, tag);
    assert_eq!(home.leftovers(), Vec::<String>::new());
    // The mirror had the config, and was asked for the layer.
    assert_eq!(mirror.state.lock().unwrap().asked.len(), 2);
    let told = |event: &Event| match event {
        Event::Retrying { cause, .. } => cause.contains(&format!("{} has no blob", mirror.host)),
        _ => false,
    };
    assert!(log.0.lock().unwrap().iter().any(told));
}

#[tokio::test]
#[ignore = "needs docker-registry, skopeo, squashfs-tools"]
async fn a_blob_that_none_has_is_told_of_all_that_were_asked() {
    let registry = Registry::start(None, false);
    let (mirror, home) = poor_mirror(&image(), &registry).await;
    registry.tamper_with_largest_blob();
    let tag: Reference = registry.name("app:1").parse().unwrap();
    let store = home.store().await;
    let pulled = store.resolve_and_ensure(&tag, PullPolicy::Always, None, &Quiet);
    let error = pulled.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    for host in [&mirror.host, &registry.host()] {
        assert!(cause.contains(host.as_str()), "{cause}");
    }
    assert_eq!(home.leftovers(), Vec::<String>::new());
}
