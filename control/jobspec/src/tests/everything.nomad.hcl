# Every block that is read, with a value that is not its default.
job "everything" {
  type = "batch"

  affinity {
    attribute = "${meta.rack}"
    value     = "r1"
    weight    = -20
  }

  spread {
    attribute = "${node.datacenter}"
    weight    = 70
    target "dc1" { percent = 60 }
    target "dc2" { percent = 40 }
  }

  periodic {
    crons            = ["*/5 * * * *", "@daily"]
    prohibit_overlap = true
    time_zone        = "Europe/Berlin"
  }

  depends_on {
    job   = "db"
    group = "main"
  }

  disruption { max_unavailable = 2 }

  reschedule {
    attempts = 3
    interval = "1h"
  }

  group "web" {
    shutdown_delay   = "3s"
    max_run_duration = "1h"

    affinity {
      attribute = "${attr.kernel.version}"
      version   = ">= 6.1"
    }

    disconnect {
      lost_after           = "1m"
      stop_on_client_after = "2m"
      replace              = false
      reconcile            = "keep_original"
    }

    volume "data" {
      type      = "host"
      source    = "ssd"
      read_only = true
      per_alloc = true
    }

    ephemeral_disk {
      size    = 500
      sticky  = true
      migrate = true
    }

    network {
      mode     = "bridge"
      hostname = "web"
      port "http" { to = 80 }
      dns {
        servers  = ["10.0.0.2"]
        searches = ["example"]
      }
    }

    service {
      name        = "web"
      port        = "http"
      canary_tags = ["canary"]
      on_update   = "ignore_warnings"
      canary_meta { a = "b" }
      weights {
        passing = 10
        warning = 2
      }
      check_restart {
        limit = 9
        grace = "10s"
      }

      check {
        type                     = "http"
        path                     = "/health"
        method                   = "POST"
        body                     = "ping"
        protocol                 = "https"
        tls_server_name          = "web.example"
        tls_skip_verify          = true
        interval                 = "5s"
        timeout                  = "2s"
        initial_status           = "passing"
        success_before_passing   = 2
        failures_before_critical = 3
        on_update                = "ignore"
        header { X-A = ["1", "2"] }
        check_restart { limit = 3 }
      }

      check {
        name         = "grpc"
        type         = "grpc"
        grpc_service = "web"
        interval     = "5s"
        timeout      = "2s"
      }

      check {
        name     = "script"
        type     = "script"
        task     = "server"
        command  = "/bin/true"
        args     = ["-a"]
        interval = "5s"
        timeout  = "2s"
      }

      check {
        name     = "ttl"
        type     = "ttl"
        interval = "30s"
      }
    }

    task "server" {
      driver         = "exec"
      leader         = true
      shutdown_delay = "2s"

      config {
        command  = "/bin/busybox"
        args     = ["httpd"]
        work_dir = "/local"
        cap_add  = ["net_raw"]
        cap_drop = ["chown"]
      }

      restart { attempts = 7 }

      resources {
        cores      = 2
        memory     = 128
        memory_max = 256
        device "nvidia/gpu" {
          affinity {
            attribute = "${device.model}"
            value     = "a"
          }
        }
      }

      artifact {
        source      = "https://example.com/a.tar.gz"
        destination = "local/a"
        mode        = "dir"
        chown       = true
        options { checksum = "md5:00" }
        headers { X-B = "c" }
      }

      template {
        data                 = "{{ env \"A\" }}"
        destination          = "local/a.env"
        change_mode          = "noop"
        perms                = "0600"
        uid                  = 1000
        env                  = true
        once                 = true
        error_on_missing_key = true
        left_delimiter       = "[["
        right_delimiter      = "]]"
        splay                = "1s"
        wait {
          min = "1s"
          max = "4s"
        }
      }

      template {
        source      = "local/a/b.tmpl"
        destination = "local/b"
        change_mode = "script"
        change_script {
          command       = "/bin/reload"
          args          = ["now"]
          timeout       = "7s"
          fail_on_error = true
        }
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
        read_only   = true
      }

      dispatch_payload { file = "input.json" }
    }

    task "helper" {
      driver = "docker"

      lifecycle {
        hook    = "poststart"
        sidecar = true
      }

      config {
        image = "busybox:1"
        args  = ["httpd", "-f"]
        ports = ["http"]
        init  = true
        labels { a = "b" }
        mount {
          target   = "/a"
          readonly = true
        }
      }
    }
  }
}
