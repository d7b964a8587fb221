//! Rust code for the peer protocol.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .bytes(".")
        .compile_protos(&["proto/peer.proto"], &["proto"])
}
