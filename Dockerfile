# weft in a container: one static binary, the certificate authorities and a folder for its work.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o /root-of-image/weft ./cmd/weft
# A new volume takes over the owner of the folder that it is mounted on.
RUN mkdir -m 1777 /root-of-image/tmp && mkdir -p /state/weft

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /root-of-image/ /
COPY --from=build --chown=65532:65532 /state/ /var/lib/
USER 65532:65532
ENTRYPOINT ["/weft"]
