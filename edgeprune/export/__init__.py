"""What leaves the toolchain: ONNX files, their contracts with the device, and the runtime that checks them."""
