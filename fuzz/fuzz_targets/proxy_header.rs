//! Any bytes are answered, in the same way however they arrive, and what is read can be written.
#![no_main]

use fairway_core::proxy_header::{HeaderFormat, Opening, read, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Opening::Header(header, len)) = read(bytes) else { return };
    assert!(len <= bytes.len());
    for cut in [len / 2, len - 1] {
        assert_eq!(read(&bytes[..cut]), Ok(Opening::Partial));
    }
    let format = HeaderFormat::V2 { crc32c: true };
    let again = write(format, header.addresses, header.unique_id.as_deref());
    let Ok(Opening::Header(second, _)) = read(&again) else { panic!("{again:?}") };
    assert_eq!(second.addresses.is_some(), header.addresses.is_some());
    // Without addresses there is no connection to name, and an id without bytes is none.
    let named = |id: &Box<[u8]>| !id.is_empty() && header.addresses.is_some();
    assert_eq!(second.unique_id, header.unique_id.clone().filter(named));
});
