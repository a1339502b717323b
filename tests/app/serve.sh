# fovea serve: endpoints, streams, errors, limits, disconnects, shutting down.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
exec python3 "$source_dir/tests/app/serve.py" "$fovea" "$smollm" "$gemma"
