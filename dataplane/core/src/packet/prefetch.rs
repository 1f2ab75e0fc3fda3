//! Telling the processor what will be read soon.
#![allow(unsafe_code, reason = "the intrinsic takes a pointer; it reads nothing and cannot fault")]

/// Has the cache line at `place` fetched, where the processor can; any place will do.
#[inline]
#[allow(unreachable_pub, reason = "exported by its parent")]
pub fn prefetch<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line: *const i8 = place.cast();
        // SAFETY: a prefetch has no effect but on the cache, whatever the address; SSE is part of
        // x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}
