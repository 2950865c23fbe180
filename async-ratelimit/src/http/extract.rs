use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use http::Request;
use http::header::HeaderName;

/// Says whose request it is.
///
/// Ready-made: [`by_peer`], [`by_header`], [`by_path`], and pairs of extractors, which make a key of both.
pub trait KeyExtractor: Clone {
    /// Feeds `key` with what identifies the client. False if the request does not say: all such requests share one limit.
    ///
    /// What is fed may be as long as the client likes; it is not kept.
    fn extract<B>(&self, request: &Request<B>, key: &mut impl Hasher) -> bool;
}

/// By the peer's address, as the server left it in the request's extensions: in axum
/// `by_peer(|info: &ConnectInfo<SocketAddr>| info.ip())`.
///
/// An IPv6 client has a whole /64 to choose addresses from, so that counts as one; an IPv4 address mapped into IPv6 counts as
/// the IPv4 address. Behind a proxy every peer is the proxy: use [`by_header`] with a header that the proxy sets itself.
pub const fn by_peer<E>(address: fn(&E) -> IpAddr) -> ByPeer<E> {
    ByPeer { address }
}

/// By the value of a header; the first one, if there are several.
///
/// Trust it only if whoever stands in front of the server sets it: a client that can choose its key has no limit.
#[must_use]
pub const fn by_header(name: HeaderName) -> ByHeader {
    ByHeader { name }
}

/// By the path of the request, without the query. Together with another: `(by_peer(…), by_path())`.
#[must_use]
pub const fn by_path() -> ByPath {
    ByPath
}

/// See [`by_peer`].
pub struct ByPeer<E> {
    address: fn(&E) -> IpAddr,
}

impl<E> Clone for ByPeer<E> {
    fn clone(&self) -> Self {
        Self { address: self.address }
    }
}

impl<E> fmt::Debug for ByPeer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByPeer")
    }
}

/// See [`by_header`].
#[derive(Clone, Debug)]
pub struct ByHeader {
    name: HeaderName,
}

/// See [`by_path`].
#[derive(Clone, Copy, Debug)]
pub struct ByPath;

/// The part of an address that a client cannot choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl<E: Send + Sync + 'static> KeyExtractor for ByPeer<E> {
    fn extract<B>(&self, request: &Request<B>, key: &mut impl Hasher) -> bool {
        let address = request.extensions().get::<E>().map(self.address).map(network);
        address.hash(key);
        address.is_some()
    }
}

impl KeyExtractor for ByHeader {
    fn extract<B>(&self, request: &Request<B>, key: &mut impl Hasher) -> bool {
        let value = request.headers().get(&self.name).map(http::HeaderValue::as_bytes);
        value.hash(key);
        value.is_some()
    }
}

impl KeyExtractor for ByPath {
    fn extract<B>(&self, request: &Request<B>, key: &mut impl Hasher) -> bool {
        request.uri().path().hash(key);
        true
    }
}

impl<X: KeyExtractor, Y: KeyExtractor> KeyExtractor for (X, Y) {
    fn extract<B>(&self, request: &Request<B>, key: &mut impl Hasher) -> bool {
        let first = self.0.extract(request, key);
        self.1.extract(request, key) && first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_choose_its_way_out_of_its_network() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:2::9"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
