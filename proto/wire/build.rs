//! Generates `wire::pb` from the .proto files. Maps become ordered ones: what is written must not depend on hash seeds.

const FILES: [&str; 6] = ["model", "command", "state", "actions", "session", "rpc"];

fn main() -> std::io::Result<()> {
    let paths: Vec<String> = FILES.iter().map(|name| format!("proto/meshctl/v1/{name}.proto")).collect();
    for path in &paths {
        println!("cargo:rerun-if-changed={path}");
    }
    tonic_prost_build::configure().btree_map(".").compile_protos(&paths, &["proto".to_owned()])
}
