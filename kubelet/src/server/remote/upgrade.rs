//! Which protocol an upgrade request asks for, and the answer to it.

use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

use super::subprotocol::{self, Subprotocol, UNNAMED};

/// How the streams are carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// SPDY/3.1 with this subprotocol.
    Spdy { protocol: &'static str },
    /// WebSocket with this subprotocol, and the value of `Sec-WebSocket-Accept`.
    WebSocket {
        protocol: Subprotocol,
        accept: String,
    },
}

/// Why a request can't be upgraded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("unable to upgrade: the request doesn't ask for SPDY/3.1 or websocket")]
    NotAsked,
    #[error("unable to upgrade: none of the protocols {0:?} is spoken here")]
    Protocol(Vec<String>),
}

/// What a path speaks, over either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    pub spdy: &'static str,
    /// Best first; none at all where WebSocket isn't spoken.
    pub websocket: &'static [Subprotocol],
}

/// exec and attach.
pub const REMOTE_COMMAND: Spoken = Spoken {
    spdy: "v4.channel.k8s.io",
    websocket: subprotocol::ALL,
};

/// port-forward. Over WebSocket it would be SPDY's frames again: the API server unwraps those for
/// nodes that don't declare `ExtendWebSocketsToKubelet`.
pub const PORT_FORWARD: Spoken = Spoken {
    spdy: "portforward.k8s.io",
    websocket: &[],
};

/// Decides by the request's headers.
pub fn plan(headers: &HeaderMap, spoken: Spoken) -> Result<Upgrade, Refusal> {
    let connection = list(headers, CONNECTION.as_str());
    if !connection
        .iter()
        .any(|word| word.eq_ignore_ascii_case("upgrade"))
    {
        return Err(Refusal::NotAsked);
    }
    for protocol in list(headers, UPGRADE.as_str()) {
        if protocol.eq_ignore_ascii_case("spdy/3.1") {
            let offered = list(headers, "x-stream-protocol-version");
            return if offered.iter().any(|name| name == spoken.spdy) {
                Ok(Upgrade::Spdy {
                    protocol: spoken.spdy,
                })
            } else {
                Err(Refusal::Protocol(offered))
            };
        }
        if protocol.eq_ignore_ascii_case("websocket") {
            return websocket(headers, spoken);
        }
    }
    Err(Refusal::NotAsked)
}

fn websocket(headers: &HeaderMap, spoken: Spoken) -> Result<Upgrade, Refusal> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refusal::NotAsked)?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(key);
    if decoded.map_or(true, |nonce| nonce.len() != 16) {
        return Err(Refusal::NotAsked);
    }
    let offered = list(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    let chosen = match spoken.websocket {
        [_, ..] if offered.is_empty() => Some(UNNAMED),
        all => all
            .iter()
            .copied()
            .find(|known| offered.iter().any(|name| name == known.name)),
    };
    chosen
        .map(|protocol| Upgrade::WebSocket {
            protocol,
            accept: tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes()),
        })
        .ok_or(Refusal::Protocol(offered))
}

/// The comma separated values of a header, however many lines it has.
fn list(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn spdy_is_spoken_with_protocol_v4() {
        let asked = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        assert_eq!(
            plan(&asked, REMOTE_COMMAND),
            Ok(Upgrade::Spdy {
                protocol: "v4.channel.k8s.io"
            })
        );
    }

    #[test]
    fn an_old_protocol_is_refused_by_name() {
        let asked = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let refused = Refusal::Protocol(vec!["channel.k8s.io".to_owned()]);
        assert_eq!(plan(&asked, REMOTE_COMMAND), Err(refused));
    }

    #[test]
    fn a_websocket_key_is_answered_as_rfc_6455_says() {
        let asked = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            (
                "sec-websocket-protocol",
                "v4.channel.k8s.io, v5.channel.k8s.io",
            ),
        ]);
        assert_eq!(
            plan(&asked, REMOTE_COMMAND),
            Ok(Upgrade::WebSocket {
                protocol: subprotocol::ALL[0],
                accept: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned()
            })
        );
    }

    #[test]
    fn a_websocket_caller_may_offer_an_old_protocol_or_none_but_not_a_strange_one() {
        let chosen = |offered: &[&'static str]| {
            let mut pairs = vec![
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            pairs.extend(offered.iter().map(|name| ("sec-websocket-protocol", *name)));
            match plan(&headers(&pairs), REMOTE_COMMAND)? {
                Upgrade::WebSocket { protocol, .. } => Ok(protocol.name),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(chosen(&["channel.k8s.io"]), Ok("channel.k8s.io"));
        assert_eq!(chosen(&[]), Ok(""));
        let refused = Refusal::Protocol(vec!["chat".to_owned()]);
        assert_eq!(chosen(&["chat"]), Err(refused));
    }

    #[test]
    fn a_plain_request_is_refused() {
        assert_eq!(
            plan(&HeaderMap::new(), REMOTE_COMMAND),
            Err(Refusal::NotAsked)
        );
        let asked = headers(&[("connection", "upgrade"), ("upgrade", "h2c")]);
        assert_eq!(plan(&asked, REMOTE_COMMAND), Err(Refusal::NotAsked));
    }
}
