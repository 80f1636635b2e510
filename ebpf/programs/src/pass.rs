//! An object with one program that passes everything: what iproute2 attaches to the far ends of a lab's links, because a
//! veth takes XDP frames only from a peer whose other end has a program.
#![no_std]
#![no_main]

mod xdp_pass;

/// The linker wants a handler; nothing here panics.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
