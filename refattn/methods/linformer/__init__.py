"""Low-rank attention: Linformer's projected keys and values, and the Nystrom approximation of the softmax matrix."""
