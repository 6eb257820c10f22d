//! Compression by content negotiation. The level is the lowest of both: the others cost several times
//! as much and save little on pages of like documents.

use std::io::Write as _;

use axum::http::{HeaderMap, HeaderValue, header};

/// Below it the answer fits a packet or two anyway.
const COMPRESS_BYTES_MIN: usize = 1_024;
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: u32 = 1;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// The best that the caller takes: zstd, then gzip, as its weights say where they differ.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let offers = headers.get_all(header::ACCEPT_ENCODING).iter();
        let offers: Vec<(String, f32)> = offers
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(parse_offer)
            .collect();
        let weight = |name: &str| {
            let named = |wanted: &str| offers.iter().find(|(offer, _)| offer == wanted);
            named(name).or_else(|| named("*")).map_or(0.0, |(_, weight)| *weight)
        };
        let (zstd, gzip) = (weight("zstd"), weight("gzip"));
        match (zstd, gzip) {
            (zstd, gzip) if zstd > 0.0 && zstd >= gzip => Self::Zstd,
            (_, gzip) if gzip > 0.0 => Self::Gzip,
            _ => Self::Identity,
        }
    }

    /// The `Content-Encoding` to send.
    pub(super) fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Zstd => Some(HeaderValue::from_static("zstd")),
        }
    }
}

fn parse_offer(text: &str) -> (String, f32) {
    let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
    let weight =
        parameters.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
    (name.trim().to_ascii_lowercase(), weight)
}

/// `body` in `encoding`, or as it is where that is not worth it; with the encoding it has got.
pub(super) fn compress(body: Vec<u8>, encoding: Encoding) -> (Vec<u8>, Encoding) {
    if body.len() < COMPRESS_BYTES_MIN {
        return (body, Encoding::Identity);
    }
    let compressed = match encoding {
        Encoding::Identity => return (body, encoding),
        Encoding::Zstd => zstd::bulk::compress(&body, ZSTD_LEVEL),
        Encoding::Gzip => {
            let room = Vec::with_capacity(body.len() / 4);
            let mut encoder =
                flate2::write::GzEncoder::new(room, flate2::Compression::new(GZIP_LEVEL));
            encoder.write_all(&body).and_then(|()| encoder.finish())
        }
    };
    match compressed {
        Ok(mut compressed) => {
            compressed.shrink_to_fit();
            (compressed, encoding)
        }
        Err(error) => {
            tracing::error!(%error, "a page can't be compressed; it is sent as it is");
            (body, Encoding::Identity)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_says_what_it_takes() {
        let check = |accept: &str, expected: Encoding| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, accept.parse().unwrap());
            assert_eq!(Encoding::negotiate(&headers), expected, "{accept}");
        };
        assert_eq!(Encoding::negotiate(&HeaderMap::new()), Encoding::Identity);
        check("gzip, deflate, br, zstd", Encoding::Zstd);
        check("gzip", Encoding::Gzip);
        check("GZIP;q=1.0, zstd;q=0.5", Encoding::Gzip);
        check("zstd;q=0, gzip", Encoding::Gzip);
        check("zstd;q=0, gzip;q=0", Encoding::Identity);
        check("*", Encoding::Zstd);
        check("br", Encoding::Identity);
        check("gzip;q=x, ;;,=", Encoding::Identity);
    }
}
