# fovea serve: its flags, a queue, limits of memory, keys, reasons not to start.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
exec python3 "$source_dir/tests/app/serve_starts.py" "$fovea" "$smollm" "$gemma"
