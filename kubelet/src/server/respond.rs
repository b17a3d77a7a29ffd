//! Answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

/// A body that may break off: what was promised by the head can't be taken back.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Plain text. The API server passes an error's text on to its own caller.
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", whole(text.into()))
}

pub fn json(bytes: Vec<u8>) -> Response<Body> {
    respond(StatusCode::OK, "application/json", whole(bytes))
}

pub fn metrics(text: String) -> Response<Body> {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    respond(StatusCode::OK, kind, whole(text))
}

/// Pieces as they come.
pub fn stream<S>(pieces: S) -> Response<Body>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    use futures::TryStreamExt;
    let body = StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync();
    respond(StatusCode::OK, "text/plain", body)
}

/// 101, with these further headers.
pub fn switch(headers: &[(&'static str, String)]) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}
