#!/usr/bin/env bash
# A Cloud TPU from nothing to a finished run: see --help, and docs/tpu.md for a walk.
set -euo pipefail
((BASH_VERSINFO[0] > 4)) || { echo "needs bash 5, not $BASH_VERSION" >&2 && exit 2; }

usage() {
  cat <<'END'
usage: launch_tpu.sh COMMAND --name=NAME --zone=ZONE [FLAG ...] [-- train.py arguments]

commands
  create   ask for the TPU and wait until it is ready
  setup    copy the commit that is checked out to every worker and install it there
  run      start train.py with the arguments after -- on every worker, follow it to its
           end, and start it again where that helps; where it is at work already, follow
  retry    create, setup and run until train.py is done: waits for capacity, and makes
           the TPU again each time it is lost
  status   of the TPU, and of train.py on every worker
  logs     the last 100 lines of train.py on one worker
  delete   the TPU, and its queued resource

flags
  --type=v4-128       accelerator type
  --runtime=VERSION   software of the TPU; the default is the one for the type
  --project=PROJECT   the default is gcloud's
  --spot              cheaper, and may be taken away at any time
  --queued            through a queued resource of the same name
  --wait=86400        give up after so many seconds without a TPU
  --restarts=3        give up at more crashes (1, a signal) with no hour of work between
  --worker=0          whose logs; --follow goes on as they grow
  --dry-run           print the gcloud commands, one a line, and run nothing
Give every command the same --name, --zone, --project, --type, --spot and --queued.
In the environment LAUNCH_TPU_PAUSE is every pause, LAUNCH_TPU_HOUR that hour, in s.

exit codes: train.py's, its 143 as 75; where workers differ, the first of 2, 3, 1, 75
  0   done
  1   gcloud failed, or train.py crashed too often
  2   wrong arguments, config or data
  3   the loss stayed non-finite
  75  not done: no capacity, no answer, or a TPU lost that is neither spot nor queued;
      give the same command again
END
}

GONE=9 SILENT=10 # what functions return where the TPU is no more, or says nothing
NEVER='permission|UNAUTHENTICATED|INVALID_ARGUMENT|Limit: 0([^.0-9]|\.0|$)'
NEVER+='|find attribute \[project\]|core/project'
NOT_NOW='no more capacity|insufficient.*capacity|RESOURCE_EXHAUSTED|stockout|quota'
NOT_NOW+='|UNAVAILABLE|INTERNAL|ABORTED|DEADLINE_EXCEEDED|ALREADY_EXISTS'

say() { [[ $DRY_RUN ]] || printf 'launch_tpu: %s\n' "$*" >&2; }
die() { DRY_RUN='' && say "$*" && exit 2; }
pause() { sleep "${LAUNCH_TPU_PAUSE:-$1}"; }

# ---- On a worker, in ~/ddae: `launch_tpu.sh on-worker FUNCTION ARGUMENT...`

at_work() {
  [[ -e run/pid && ! -e run/exit ]] && grep -qa train "/proc/$(<run/pid)/cmdline"
} 2>/dev/null

worker_install() { # what `setup` has unpacked in new
  local python
  ! at_work || die "$(hostname): train.py is at work; its code is left as it is"
  mkdir -p run && rm -rf code && mv new code
  if ! venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf venv
    python=$(command -v python3.13 || command -v python3.12 || command -v python3.11) || :
    if [[ ! $python ]] || ! "$python" -m venv venv; then
      rm -rf venv # Ubuntu 22.04 has Python 3.10 alone; uv fetches another
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python=3.12 venv
    fi
  fi
  venv/bin/python -m pip install --quiet './code[tpu]' || return 1 # a 2 of pip's is not ours
}

worker_start() { # TAG ARGUMENT...: at most once for each TAG, so it may be sent twice
  [[ -x venv/bin/python ]] || die "$(hostname): nothing is installed; setup comes first"
  [[ $(cat run/tag 2>/dev/null) != "$1" ]] || return 0
  ! at_work || { say "$(hostname): train.py is at work already" && return; }
  [[ ! -e run/log ]] || mv run/log "run/log.$(<run/tag)"
  rm -f run/pid run/exit
  echo "$1" >run/tag
  # A session of its own, which the end of this ssh does not end.
  setsid bash code/launch_tpu.sh on-worker train "${@:2}" </dev/null >run/log 2>&1 &
  until [[ -e run/pid ]]; do sleep 0.1; done
}

worker_train() { # ARGUMENT...: leaves its exit code in run/exit
  local code=0
  trap : TERM # where every process here gets it, train.py's exit code is noted still
  ( # not in the background: after a trap, bash 5.2's wait may give -1
    echo "$BASHPID" >run/pid
    cd code && exec env PYTHONUNBUFFERED=1 ../venv/bin/python train.py "$@"
  ) || code=$?
  echo "$code" >run/exit.part
  mv run/exit.part run/exit
}

worker_report() {
  local found=none
  if at_work; then
    found=running
  elif [[ -e run/tag ]]; then
    [[ -e run/exit ]] || sleep 2 # it may have ended just now
    found="exit $(cat run/exit 2>/dev/null || echo unknown)"
  fi
  echo "worker $(hostname) $found"
}

worker_lines() { # SEEN: the whole lines of the log after so many
  head -n "$(wc -l <run/log)" run/log | tail -n "+$(($1 + 1))"
}

# ---- Here.

gc() { # ARGUMENT...: gcloud compute tpus ARGUMENT..., run or printed
  local command=(gcloud compute tpus "$@" "--zone=$ZONE" --quiet) line
  [[ ! $PROJECT ]] || command+=("--project=$PROJECT")
  if [[ $DRY_RUN ]]; then
    printf -v line '%q ' "${command[@]}"
    printf '%s\n' "${line% }" >&3
  else
    "${command[@]}"
  fi
}

shell() { # WORKER COMMAND...: a bash command there
  gc tpu-vm ssh "$NAME" "--worker=$1" "--command=${*:2}" \
    --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 \
    </dev/null # a terminal stops what reads from it in the background
}

workers() { # WORKER FUNCTION ARGUMENT...: calls it there; arguments arrive as they are
  local words
  printf -v words ' %q' "${@:2}"
  shell "$1" "bash ddae/code/launch_tpu.sh on-worker$words"
}

insist() { # COMMAND...: ssh is often refused at first
  local try code
  for try in 1 2 3 4 5; do
    code=0
    "$@" || code=$?
    case $code in
      0 | 2) return "$code" ;;
      127) die "nothing is installed on the workers; setup comes first" ;;
    esac
    ! gone "$(state)" || return "$GONE"
    say "exit code $code, try $try of 5"
    ((try == 5)) || pause $((15 * try))
  done
  return 1
}

describe() { # KIND FIELD: its value, NOT_FOUND, or UNREACHABLE
  gc "$1" describe "$NAME" "--format=value($2)" 2>"$TMP/error" && return
  grep -Eqi 'not[_ ]found' "$TMP/error" && echo NOT_FOUND && return
  cat "$TMP/error" >&2
  echo UNREACHABLE
}

state() { # of the queued resource until that is ACTIVE, then of the TPU
  local word=ACTIVE
  [[ ! $QUEUED ]] || word=$(describe queued-resources state.state)
  if [[ $word == ACTIVE ]]; then
    word=$(describe tpu-vm state)
    [[ ! $QUEUED || $word != NOT_FOUND ]] || word=TERMINATED
  fi
  echo "$word"
}

gone() { # STATE
  [[ $1 =~ ^(PREEMPTED|TERMINATED|NOT_FOUND|FAILED|SUSPENDING|SUSPENDED)$ ]]
}

check_type() { # so that a TPU is never made again as another, dearer one
  local found
  found=$(describe tpu-vm acceleratorType)
  [[ ! $found || $found =~ ^(NOT_FOUND|UNREACHABLE|"$TYPE")$ ]] ||
    die "$NAME is a $found, and --type says $TYPE"
}

request() { # asks for the TPU; what gcloud has against it is left in $TMP/error
  local kind=tpu-vm flags=("--version=$RUNTIME")
  [[ ! $QUEUED ]] || kind=queued-resources
  [[ ! $QUEUED ]] || flags=("--node-id=$NAME" "--runtime-version=$RUNTIME")
  [[ ! $SPOT ]] || flags+=(--spot)
  gc "$kind" create "$NAME" "--accelerator-type=$TYPE" "${flags[@]}" >&2 2>"$TMP/error"
}

obtain() { # [keep trying]: until the TPU is ready
  local deadline=$((SECONDS + WAIT)) rest=60 word against
  while true; do
    word=$(state) against=
    [[ ! $DRY_RUN ]] || word=NOT_FOUND
    say "$NAME: $word"
    case $word in
      READY) check_type && return ;;
      NOT_FOUND) request || against=$(<"$TMP/error") ;;
      FAILED)
        against=$(gc queued-resources describe "$NAME" '--format=value(state)')
        remove || :
        ;;
      UNREACHABLE) ! grep -Eqi "$NEVER" "$TMP/error" || return 1 ;;
      *) ! gone "$word" || remove || : ;;
    esac
    [[ ! $DRY_RUN ]] || return 0
    if [[ ! $against ]]; then
      pause 30
    else
      printf '%s\n' "$against" >&2
      ! grep -Eqi "$NEVER" <<<"$against" || return 1
      grep -Eqi "$NOT_NOW" <<<"$against" || return 1
      [[ ${1-} ]] || return 75
      say "asking again in $rest s"
      pause "$rest"
      ((rest = rest < 1800 ? rest * 2 : rest))
    fi
    ((SECONDS < deadline)) || { say "gave up after $WAIT s (--wait)" && return 75; }
  done
}

remove() {
  local kind flags code=0
  for kind in queued-resources tpu-vm; do
    flags=()
    [[ $kind == tpu-vm ]] || flags=(--force)
    gc "$kind" delete "$NAME" "${flags[@]}" >&2 2>"$TMP/error" && continue
    grep -Eqi 'not[_ ]found' "$TMP/error" && continue
    cat "$TMP/error" >&2
    code=1
  done
  return "$code"
}

setup() {
  if [[ ! $DRY_RUN ]]; then
    git -C "$ROOT" archive --format=tar.gz --output="$TMP/ddae.tar.gz" HEAD || return 2
    [[ ! $(git -C "$ROOT" status --porcelain) ]] ||
      say "changes that are not committed are not copied"
  fi
  insist gc tpu-vm scp "$TMP/ddae.tar.gz" "$NAME:ddae.tar.gz" --worker=all || return
  insist shell all "rm -rf ddae/new && mkdir -p ddae/new" \
    "&& { tar -xzf ddae.tar.gz -C ddae/new || exit 1; }" \
    "&& bash ddae/new/launch_tpu.sh on-worker install" || return
  say "installed on every worker"
}

follow() { # until train.py has ended on every worker; returns its exit code
  local seen=0 silent=0 reports try code
  while true; do
    if reports=$(workers all report 2>"$TMP/error") && [[ $reports || $DRY_RUN ]]; then
      silent=0
      for try in 1 2 3; do # at the end a refused ssh is not to hide the last lines
        workers 0 lines "$seen" >"$TMP/lines" 2>"$TMP/error" && break
        : >"$TMP/lines" # where some came, they come again
        [[ $reports != *" running"* ]] || break
        say "no log, try $try of 3: $(tail -n 1 "$TMP/error")"
        ((try == 3)) || pause $((15 * try))
      done
      [[ ! $DRY_RUN ]] || return 0
      cat "$TMP/lines"
      ((seen += $(wc -l <"$TMP/lines"))) || :
      if [[ $reports != *" running"* ]]; then
        say "$(sort <<<"$reports" | paste -sd';')"
        for code in 2 3; do
          ! grep -q " exit $code\$" <<<"$reports" || return "$code"
        done
        ! grep -Eqv ' exit (0|75|143)$' <<<"$reports" || return 1 # 143: SIGTERM, early
        ! grep -qv ' exit 0$' <<<"$reports" || return 75
        return 0
      fi
    else
      say "no answer from the workers: $(tail -n 1 "$TMP/error")"
      ! gone "$(state)" || return "$GONE"
      ((++silent < 60)) || return "$SILENT"
    fi
    pause 30
  done
}

train() { # [keep trying] [not installed yet]
  local crashes=0 attempt=0 began code install=${2-}
  trap 'say "train.py goes on; the same command follows it again"; exit 130' INT
  while true; do
    code=0 began=$SECONDS
    { [[ ! $install ]] || setup; } && install='' &&
      insist workers all start "$(date +%s).$$.$((++attempt))" "${TRAIN[@]}" &&
      follow || code=$?
    case $code in
      0 | 2 | 3) return "$code" ;;
      75) say "train.py was stopped; again" ;;
      "$SILENT") return 75 ;;
      "$GONE")
        say "$NAME is no more"
        [[ ${1-} || $SPOT || $QUEUED ]] || return 75
        obtain "keep trying" || return
        install=yes
        ;;
      *)
        ((SECONDS - began < ${LAUNCH_TPU_HOUR:-3600})) || crashes=0 # it made progress
        ((++crashes <= RESTARTS)) || return 1
        say "crash $crashes; again, up to $RESTARTS times (--restarts)"
        pause 30
        ;;
    esac
  done
}

retry() {
  local install=yes reports='' try code
  obtain "keep trying" || return
  for try in 1 2 3; do # where train.py is at work, a refused ssh is not to hide it
    code=0
    reports=$(workers all report 2>/dev/null) || code=$?
    [[ $code != 0 && $code != 127 ]] || break # 127: there is nothing of ours yet
    ((try == 3)) || pause $((15 * try))
  done
  [[ $reports != *" running"* ]] || install=
  train "keep trying" "$install"
}

status() {
  local word
  [[ ! $QUEUED ]] || echo "queued: $(describe queued-resources state.state)"
  word=$(describe tpu-vm 'state,health,acceleratorType')
  echo "TPU: ${word//$'\t'/ }"
  [[ $word != READY* && ! $DRY_RUN ]] || workers all report || say "not all answered"
}

NAME='' ZONE='' TYPE=v4-128 RUNTIME='' PROJECT='' SPOT='' QUEUED='' WAIT=86400
RESTARTS=3 WORKER=0 FOLLOW='' DRY_RUN='' TRAIN=() COMMAND=${1-}
case $COMMAND in
  create | setup | run | retry | status | logs | delete) shift ;;
  on-worker)
    cd ~/ddae
    case $2 in
      install) worker_install ;;
      start) worker_start "${@:3}" ;;
      train) worker_train "${@:3}" ;;
      report) worker_report ;;
      lines) worker_lines "$3" ;;
    esac
    exit
    ;;
  --help | -h) usage && exit ;;
  *) die "unknown command '$COMMAND'; see launch_tpu.sh --help" ;;
esac
while (($#)); do
  name=${1%%=*} name=${name#--} name=${name//-/_}
  case $1 in
    --name=* | --zone=* | --type=* | --runtime=* | --project=* | --wait=* | \
      --restarts=* | --worker=*) printf -v "${name^^}" %s "${1#*=}" ;;
    --spot | --queued | --follow | --dry-run) printf -v "${name^^}" yes ;;
    --help | -h) usage && exit ;;
    --) TRAIN=("${@:2}") && break ;;
    *) die "unknown flag '$1'; flags are --FLAG=VALUE, train.py's come after --" ;;
  esac
  shift
done
[[ $NAME ]] || die "--name is missing"
[[ $ZONE ]] || die "--zone is missing"
[[ $NAME =~ ^[a-z][-a-z0-9]*$ ]] || die "--name=$NAME is not of a-z, 0-9 and -"
for number in "$WAIT" "$RESTARTS" "$WORKER"; do # without a 0 before it, as in octal
  [[ $number =~ ^(0|[1-9][0-9]*)$ ]] || die "--wait, --restarts, --worker are numbers"
done
if [[ $COMMAND == run || $COMMAND == retry ]]; then
  [[ ${TRAIN[*]} ]] || die "nothing to run: train.py's arguments come after --"
  [[ ! " ${TRAIN[*]}" =~ \ --?workdir[=\ ]([^/\ ][^:\ ]*)(\ |$) ]] ||
    die "--workdir=${BASH_REMATCH[1]} would lie in the code, which setup replaces;" \
      "give it as gs://BUCKET/FOLDER or /FOLDER"
  [[ $TYPE =~ -[1-8]$ || " ${TRAIN[*]}" == *workdir[=\ ]gs://* ]] ||
    say "warning: a $TYPE has several hosts, and --workdir is not on gs://"
fi
case $TYPE in
  v6e-*) : "${RUNTIME:=v2-alpha-tpuv6e}" ;;
  v5p-*) : "${RUNTIME:=v2-alpha-tpuv5}" ;;
  v5litepod-*) : "${RUNTIME:=v2-alpha-tpuv5-lite}" ;;
  *) : "${RUNTIME:=tpu-ubuntu2204-base}" ;;
esac
[[ $DRY_RUN ]] || command -v gcloud >/dev/null || die "gcloud is not installed"

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
exec 3>&1 # where --dry-run prints, and nothing else does
[[ ! $DRY_RUN ]] || exec >/dev/null
code=0
case $COMMAND in
  create) obtain || code=$? ;;
  setup) setup || code=$? ;;
  run) check_type && train || code=$? ;;
  retry) retry || code=$? ;;
  status) status || code=$? ;;
  logs) shell "$WORKER" tail -n 100 ${FOLLOW:+-F} ddae/run/log || code=$? ;;
  delete) remove || code=$? ;;
esac
[[ $code != "$GONE" ]] || code=75
[[ ! ${TRAIN[*]} ]] || say "exit code $code; $NAME is paid for until it is deleted"
exit "$code"
