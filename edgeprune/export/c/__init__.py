"""C99 for microcontrollers: an ONNX file becomes a list of steps, its values places in one arena, and both text."""
