use super::*;
use alloc::format;
use proptest::prelude::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn header(bytes: &[u8]) -> (ProxyHeader, usize) {
    match read(bytes) {
        Ok(Opening::Header(header, len)) => (header, len),
        other => panic!("{other:?}"),
    }
}

#[test]
fn crc32c_is_that_of_the_rfc() {
    assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
    assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa, "RFC 3720, B.4: 32 bytes of zeroes");
}

#[test]
fn lines_of_version_1() {
    let v4 = Some((addr("192.0.2.7:56324"), addr("198.51.100.1:443")));
    let v6 = Some((addr("[2001:db8::7]:1"), addr("[2001:db8::1]:65535")));
    for (text, want) in [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", Ok(v4)),
        ("PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", Ok(v6)),
        ("PROXY UNKNOWN\r\n", Ok(None)),
        ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(None)),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 9\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 01 443\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 192.0.2.700 198.51.100.1 1 443\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", Err(HeaderError::Address)),
        ("PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", Err(HeaderError::Address)),
        ("PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", Err(HeaderError::Address)),
        ("PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", Err(HeaderError::Address)),
        ("PROXY \r\n", Err(HeaderError::Address)),
    ] {
        let got = read(format!("{text}GET /").as_bytes());
        let want = want.map(|addresses| {
            Opening::Header(ProxyHeader { addresses, unique_id: None }, text.len())
        });
        assert_eq!(got, want, "{text:?}");
    }
    let endless = [WORD, &[b'x'; 200]].concat();
    assert_eq!(read(&endless), Err(HeaderError::TooLong));
}

#[test]
fn version_2_byte_by_byte() {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[
        0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 1, 0xbb,
    ]);
    let addresses = Some((addr("192.0.2.7:56324"), addr("198.51.100.1:443")));
    assert_eq!(header(&bytes), (ProxyHeader { addresses, unique_id: None }, 28));
    bytes[12] = 0x20;
    assert_eq!(header(&bytes).0.addresses, None, "LOCAL: addresses are to be ignored");
    bytes[12] = 0x11;
    assert_eq!(read(&bytes), Err(HeaderError::Version));
    bytes[12] = 0x22;
    assert_eq!(read(&bytes), Err(HeaderError::Version));
    bytes[12..14].copy_from_slice(&[0x21, 0x41]);
    assert_eq!(read(&bytes), Err(HeaderError::Address), "no such family");
    bytes[13] = 0x13;
    assert_eq!(read(&bytes), Err(HeaderError::Address), "no such protocol");
    bytes[13] = 0x21;
    assert_eq!(read(&bytes), Err(HeaderError::Address), "too short for IPv6");
    bytes[13] = 0x00;
    assert_eq!(header(&bytes).0.addresses, None, "unspecified");
    bytes[14..16].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(read(&bytes), Err(HeaderError::TooLong));
}

#[test]
fn tlvs_fill_their_room_and_checksums_are_checked() {
    let addresses = Some((addr("192.0.2.7:1"), addr("192.0.2.1:2")));
    let bytes = write(HeaderFormat::V2 { crc32c: true }, addresses, Some(b"id-1"));
    let (read_back, len) = header(&bytes);
    assert_eq!((read_back.addresses, len), (addresses, bytes.len()));
    assert_eq!(read_back.unique_id.as_deref(), Some(&b"id-1"[..]));
    // But for the byte that says that a checksum follows.
    for at in (16..bytes.len()).filter(|at| *at != bytes.len() - 7) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(
            matches!(read(&changed), Err(HeaderError::Checksum | HeaderError::Tlv)),
            "byte {at} was changed: {:?}",
            read(&changed)
        );
    }
    let mut cut = bytes[..28 + 7].to_vec();
    cut[15] = 12 + 7;
    assert_eq!(header(&cut).0.unique_id.as_deref(), Some(&b"id-1"[..]));
    for spare in 1..7 {
        let mut cut = cut[..35 - spare].to_vec();
        cut[15] = 12 + 7 - spare as u8;
        assert_eq!(read(&cut), Err(HeaderError::Tlv), "{spare} bytes are missing");
    }
}

#[test]
fn plain_bytes_are_no_header_as_soon_as_they_differ() {
    for (bytes, want) in [
        (&b""[..], Opening::Partial),
        (b"P", Opening::Partial),
        (b"PO", Opening::Plain),
        (b"PROXX", Opening::Plain),
        (b"\r\n\r\n", Opening::Partial),
        (b"\r\n\r\nx", Opening::Plain),
        (b"GET / HTTP/1.1\r\n", Opening::Plain),
    ] {
        assert_eq!(read(bytes), Ok(want), "{bytes:?}");
    }
}

#[test]
fn headers_that_speak_for_ourselves() {
    assert_eq!(write(HeaderFormat::V1, None, None), b"PROXY UNKNOWN\r\n");
    let local = write(HeaderFormat::V2 { crc32c: false }, None, None);
    assert_eq!(local[12..], [0x20, 0, 0, 0]);
    assert_eq!(header(&local).0.addresses, None);
    let mixed = Some((addr("192.0.2.7:1"), addr("[2001:db8::1]:2")));
    let text = b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n";
    assert_eq!(write(HeaderFormat::V1, mixed, None), text, "a family that fits both");
}

fn any_addr() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), b.into()));
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), b.into()));
    (prop_oneof![v4, v6], any::<u16>(), any::<u16>())
        .prop_map(|((a, b), from, to)| (SocketAddr::new(a, from), SocketAddr::new(b, to)))
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        addresses in any_addr(),
        id in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..=128)),
        version in 0..3,
        tail in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let format = match version {
            0 => HeaderFormat::V1,
            n => HeaderFormat::V2 { crc32c: n == 2 },
        };
        let pair = one_family(addresses.0, addresses.1);
        let bytes = write(format, Some(addresses), id.as_deref());
        prop_assert!(version > 0 || bytes.len() <= V1_MOST);
        for cut in 0..bytes.len() {
            prop_assert_eq!(read(&bytes[..cut]), Ok(Opening::Partial));
        }
        let whole = [&bytes[..], &tail].concat();
        let (header, len) = header(&whole);
        prop_assert_eq!(len, bytes.len());
        prop_assert_eq!(header.addresses, Some(pair));
        prop_assert_eq!(header.unique_id.as_deref(), id.as_deref().filter(|_| version > 0));
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let signed = [&SIGNATURE[..], &bytes].concat();
        if let Ok(Opening::Header(_, len)) = read(&signed) {
            prop_assert!(len <= signed.len());
        }
        let worded = [WORD, &bytes].concat();
        if let Ok(Opening::Header(_, len)) = read(&worded) {
            prop_assert!(len <= worded.len());
        }
    }
}
